"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from vmsim.cli.common import DurationType, SizeType, device_flag
from vmsim.machine.config import DIALECTS, MIGRATIONS, RINGS
from vmsim.machine.installed import DEVICE, find_device
from vmsim.machine.remote import TRANSPORTS
from vmsim.migration.report import OVER_LIMIT
from vmsim.vhost.device_options import DeviceOption
from vmsim.workload.choices import LimitChoice, MachineChoice

F = TypeVar("F", bound=Callable[..., Any])


OF_DEVICE: Final = tuple(option for option in find_device(DEVICE).options if option.machines)
"""What is said of the back-end where a machine is started."""


def _of_device(option: DeviceOption) -> Callable[[F], F]:
    flag, settings = device_flag(option, option.default)
    return click.option(flag, option.name, help=option.about, **settings)


def backend_options(command: F) -> F:
    """Add the options that say where back-ends run."""
    for add in reversed((
        click.option("--transport", type=click.Choice(TRANSPORTS), default="inproc", show_default=True,
                     help="Back-ends in this process, or in processes of their own behind a socket."),
        click.option("--backend", metavar="COMMAND",
                     help="How to start them, with {socket} and {dir} in it  [default: vmsim serve]"),
    )):
        command = add(command)
    return command


def limit_options(command: F) -> F:
    """Add the options that say when the guest is stopped, and when to give up."""
    for add in reversed((
        click.option("--downtime-limit", type=DurationType(), metavar="TIME",
                     help="Maximum downtime: 300ms, 1s. Everything counts: memory, guest and back-end state, "
                     "transfer, loading, start.  [default: 300ms]"),
        click.option("--over-limit", type=click.Choice(OVER_LIMIT), default="go-on", show_default=True,
                     help="What to do when the limit cannot be kept; reported before the guest stops."),
        click.option("--bandwidth", type=SizeType(), metavar="SIZE",
                     help="Maximum bandwidth in bytes per second: 100M, 1G. The guest then works about as "
                     "fast as in real time."),
        click.option("--max-rounds", type=click.IntRange(1, 10_000), default=30, show_default=True,
                     help="Maximum number of memory rounds before the guest is stopped anyway."),
        click.option("--cancel-after", type=DurationType(), metavar="TIME",
                     help="Cancel the migration if it has not committed by then; the source continues."),
    )):
        command = add(command)
    return command


def machine_options(command: F) -> F:
    """Add the options of :class:`MachineChoice` to a command."""
    for add in reversed((
        click.option("--dialect", type=click.Choice(DIALECTS), default="upstream", show_default=True,
                     help="How the back-end's state is transferred: QEMU's messages, or the RFC's of 2023."),
        click.option("--ring", type=click.Choice(RINGS), default="split", show_default=True,
                     help="Format of the virtqueues."),
        backend_options,
        click.option("--migration", type=click.Choice(MIGRATIONS), default="internal", show_default=True,
                     help="Back-end state in the stream, kept by a back-end that stays, or blocked."),
        click.option("--migration-save", type=click.Choice(MIGRATIONS), default=None,
                     help="The same, checked when the machine is saved  [default: as --migration]."),
        click.option("--migration-load", type=click.Choice(MIGRATIONS), default=None,
                     help="The same, checked when it is loaded  [default: as --migration]."),
        *map(_of_device, OF_DEVICE),
        click.option("--memory", type=SizeType(), default="64M", show_default=True, help="Guest memory."),
        click.option("--queues", type=click.IntRange(1, 1022), default=1, show_default=True,
                     help="Request queues."),
    )):
        command = add(command)
    return command


def choice_of(options: dict[str, Any]) -> MachineChoice:
    """Take the machine's options out of a command's parameters."""
    of_device = {option.name: options.pop(option.name) for option in OF_DEVICE}
    fields = set(MachineChoice.__struct_fields__) - {"options"}
    return MachineChoice(options=of_device, **{name: options.pop(name) for name in fields})


def limits_of(options: dict[str, Any]) -> LimitChoice:
    """Take the options of ``limit_options`` out of a command's parameters."""
    return LimitChoice(**{name: options.pop(name) for name in LimitChoice.__struct_fields__})
