"""What a machine is started with: the keyword arguments of ``Machine``, ``receive`` and ``restore``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

import msgspec

from vmsim.guest.config import GuestConfig
from vmsim.host.processes import Command
from vmsim.machine.config import MachineConfig, memory_layout, parse_size
from vmsim.machine.parts import MachineBackend, Seams
from vmsim.schedule import Schedule
from vmsim.schedule.clock import wall_clock_ns

MEMORY: Final = "64M"


class Surroundings(TypedDict, total=False):
    """What a machine finds where it starts or arrives.

    ``options`` are the back-end's (``FsOptions`` and ``StateOptions`` of the device). ``backend`` attaches
    one that is there already instead of starting one; ``transport`` "vhost-user" starts it as a process of
    its own, by ``backend_command`` with ``{socket}`` and ``{dir}`` in it (default: ``vmsim serve``), in the
    working directory of now.
    """

    options: Mapping[str, Any] | None
    schedule: Schedule | None
    seams: Seams | None
    backend: MachineBackend | None
    transport: str | None
    backend_command: Command | None


class LaunchOptions(Surroundings, total=False):
    """What a new machine is; what is not said is as in ``MachineConfig``.

    ``memory`` is a size (``"64M"``, bytes) or a list of (guest-physical address, bytes) regions; ``ring`` is
    ``split`` or ``packed``; ``migration`` is which kind is allowed, ``migration_save`` and ``migration_load``
    if that differs for saving and loading; ``device`` names an installed one, ``notification`` offers the
    driver a notification queue; ``guest`` are the guest's options (``GuestConfig``).
    """

    memory: int | str | list[tuple[int, int]]
    device: str
    ring: str
    queues: int
    queue_size: int
    notification: bool
    tag: str
    dialect: str
    migration: str
    migration_save: str
    migration_load: str
    policy: str
    guest: GuestConfig | None


class ArrivalOptions(Surroundings, total=False):
    """What is said about a machine that arrives, where its stream does not say it, or says otherwise.

    ``backend`` is one that was kept (migration ``external``); ``migration`` and ``migration_load`` overrule
    the stream. ``realtime_ns`` is the guest's wall clock time when the schedule's clock read zero (default:
    the host's).
    """

    migration: str | None
    migration_load: str | None
    realtime_ns: int | None


def require_known(options: Mapping[str, Any], kind: type, function: str) -> None:
    """TypeError, as Python's own, for keyword arguments that ``kind`` does not have."""
    for name in options:
        if name not in kind.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def config_of(launch: LaunchOptions, schedule: Schedule) -> MachineConfig:
    """The machine as plain data; UsageError for a size that is none."""
    memory = launch.get("memory", MEMORY)
    guest = launch.get("guest") or GuestConfig()
    if not guest.realtime_ns:
        guest = msgspec.structs.replace(guest, realtime_ns=wall_clock_ns() - schedule.now_ns())
    known = MachineConfig.__struct_fields__
    said: dict[str, Any] = {name: value for name, value in launch.items() if name in known}
    said |= {
        "memory": memory if isinstance(memory, list) else memory_layout(parse_size(memory)), "guest": guest,
        "options": dict(launch.get("options") or {}),
    }  # fmt: skip
    return MachineConfig(**said)
