"""The options of ``vmsim serve``: virtiofsd's under their names, what is refused by name, and our own.

One row of OPTIONS is one option. The rows become click's options, their values become what the device and the
service are asked for, and the tests compare the names with those that the real virtiofsd prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, get_args

import click

from vmsim.cli.common import device_flag
from vmsim.cli.compatibility import COMPATIBLE
from vmsim.errors import UsageError
from vmsim.host import capabilities
from vmsim.host.sandbox import KINDS, IdMap, Sandbox
from vmsim.machine.installed import DEVICE, find_device
from vmsim.vhost.backend_ring import Policy
from vmsim.vhost.device_options import DeviceOption
from vmsim.vhost.dialects import DIALECTS

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final = ("off", "error", "warn", "info", "debug", "trace")
"""Of --log-level: each says more than the one before."""
MAX_QUEUES: Final = 1022
COMPAT: Final[Mapping[str, str]] = {
    "source": "--shared-dir", "socket_path": "--socket-path", "modcaps": "--modcaps", "xattr": "--xattr",
    "xattrmap": "--xattrmap", "cache": "--cache", "sandbox": "--sandbox", "writeback": "--writeback",
    "no_readdirplus": "--no-readdirplus", "announce_submounts": "--announce-submounts",
    "killpriv_v2": "--killpriv-v2", "no_killpriv_v2": "--no-killpriv-v2", "posix_acl": "--posix-acl",
    "allow_direct_io": "--allow-direct-io", "log_level": "--log-level", "debug": "--log-level debug",
    "security_label": "--security-label", "posix_lock": "--locks", "flock": "--locks",
    "no_posix_lock": "--no-locks", "no_flock": "--no-locks",
}  # fmt: skip
"""What virtiofsd's ``-o`` calls an option, and what the option is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One option.

    ``flags`` are its spellings, perhaps a ``--yes/--no`` pair; ``parameter`` is what its value is called, by
    default the first long one. ``to`` is the device's option that gets the value; without it the service
    itself uses it. ``refused`` says what to do instead of it, given a value that we have nothing for.
    ``settings`` are click's.
    """

    flags: tuple[str, ...]
    about: str
    to: str = ""
    parameter: str = ""
    refused: Callable[[Any], str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its value is called."""
        long = next((flag for flag in self.flags if flag.startswith("--")), self.flags[0])
        return self.parameter or long.split("/")[0].lstrip("-").replace("-", "_")

    @property
    def spellings(self) -> list[str]:
        """Every way to write it."""
        return [one for flag in self.flags for one in flag.split("/")]

    def option(self) -> Callable[[F], F]:
        """As click's decorator."""
        return click.option(*self.flags, self.name, help=self.about, **self.settings)


def _modern(words: tuple[str, ...]) -> str:
    found = []
    for word in ",".join(words).split(","):
        name, equals, value = word.partition("=")
        option = COMPAT.get(name, "--" + name.replace("_", "-"))
        found.append(f"{option} {value}" if equals else option)
    return f"use {' '.join(found)}"


def _instead(hint: str) -> Callable[[Any], str]:
    return lambda value: hint


def _seccomp(action: str) -> str:
    return "" if action == "none" else "use --seccomp none: what confines the process is --sandbox"


FLAG: Final = {"is_flag": True}


def _choice(*values: str, default: str | None) -> dict[str, Any]:
    return {"type": click.Choice(values), "default": default, "show_default": default is not None}


def _many(metavar: str) -> dict[str, Any]:
    return {"multiple": True, "metavar": metavar}


def _of_device(option: DeviceOption) -> Row:
    """A device's option as a row."""
    flag, settings = device_flag(option, option.served)
    return Row((flag,), option.about, option.name, settings=settings)


MAP: Final = ":INSIDE:OUTSIDE:COUNT:"

OPTIONS: Final = (
    # -- where, and what is served
    Row(("--socket-path",), "Listen on this Unix socket.", settings={"metavar": "PATH"}),
    Row(("--socket-group",), "The group that may connect to it (mode 0660).", settings={"metavar": "GROUP"}),
    Row(("--fd",), "Serve on this inherited socket instead.", settings={"type": click.IntRange(0)}),
    Row(("--shared-dir",), "The directory to share with the guest.", settings={"metavar": "DIR"}),
    Row(("--tag",), "Offer the configuration space, with this tag in it.",
        settings={"default": "", "metavar": "TAG"}),
    # -- what the guest gets, and migration: what the device says of itself
    *map(_of_device, find_device(DEVICE).options),
    # -- confinement and limits
    Row(("--sandbox",), "How the process is isolated from the host  [default: namespace; none if not "
        "permitted].",
        settings=_choice(*KINDS, default=None)),
    Row(("--modcaps",), "Capabilities to keep or to drop beside the usual, such as +sys_admin:-chown.",
        settings={"default": "", "metavar": "LIST"}),
    Row(("--uid-map",), "User ids of the sandbox's user namespace; may be repeated.", settings=_many(MAP)),
    Row(("--gid-map",), "The same for group ids.", settings=_many(MAP)),
    Row(("--rlimit-nofile",), "Open files at most; 0 leaves the limit alone  [default: what the system "
        "allows].", settings={"type": click.IntRange(0), "default": None}),
    Row(("--thread-pool-size",), "Accepted for virtiofsd's sake: there is one thread.",
        settings={"type": click.IntRange(0), "default": 0}),
    Row(("--seccomp",), "Only none: there is no filter of system calls.",
        refused=_seccomp, settings=_choice("none", "kill", "log", "trap", default=None)),
    # -- what is said
    Row(("--log-level",), "Log level on standard error.", settings=_choice(*LEVELS, default="info")),
    Row(("-d",), "The same as --log-level debug.", settings={"is_flag": True, "hidden": True}),
    Row(("-f",), "Accepted for virtiofsd's sake.", settings={"is_flag": True, "hidden": True}),
    # -- virtiofsd's that are refused by name
    Row(("--socket",), "Deprecated.", refused=_instead("use --socket-path"), settings={"hidden": True}),
    Row(("--syslog",), "Not offered.", settings={"is_flag": True, "hidden": True}, refused=_instead(
        "messages go to standard error; pipe them to logger, or let systemd keep them")),
    Row(("-o",), "Deprecated.", refused=_modern, settings={"multiple": True, "hidden": True}),
    # -- our own
    Row(("--reconnect",), "Keep running after the front-end disconnects, and keep the session for the next "
        "one.", settings=FLAG),
    Row(("--request-queues",), "Request queues.", parameter="queues",
        settings={"type": click.IntRange(1, MAX_QUEUES), "default": 1, "show_default": True}),
    Row(("--no-packed",), "Do not offer packed virtqueues.", settings=FLAG),
    Row(("--ring-reset",), "Offer VIRTIO_F_RING_RESET. virtiofsd lacks it, and QEMU takes it unless told "
        "queue_reset=off: a guest that has it does not move there.", settings=FLAG),
    Row(("--compatible-with",), "Offer only what this back-end has as well, so that every guest can move to "
        "it and back: no packed rings, IN_ORDER, NOTIFICATION_DATA, RING_RESET, --no-locks.",
        settings=_choice(*COMPATIBLE, default=None)),
    Row(("--no-inflight",), "Do not offer in-flight tracking.", settings=FLAG),
    Row(("--ring-policy",), "What happens to a ring with a malformed chain: the device needs a reset, or the "
        "chain is passed over.", settings=_choice(*get_args(Policy), default="strict")),
    Row(("--dialect",), "How state is transferred: QEMU's messages, or the RFC's of 2023.",
        settings=_choice(*sorted(DIALECTS), default="upstream")),
    Row(("--trace",), "Print events on standard error while they happen.",
        settings={"metavar": "GLOB", "default": None}),
)  # fmt: skip


ELSEWHERE: Final = ("--print-capabilities", "--help", "-h", "--version", "-V")
"""virtiofsd's options that are no row: the command's own, and click's."""


def serve_options(command: F) -> F:
    """Add every option to a command, which gets their values by the names of the rows."""
    for row in reversed(OPTIONS):
        command = row.option()(command)
    return command


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    """UsageError, with what to do instead, for options or values that only virtiofsd has."""
    for row in OPTIONS:
        value = values[row.name]
        hint = row.refused(value) if row.refused and value else ""
        if hint:
            what = f"{row.flags[0]} {value}" if isinstance(value, str) else row.flags[0]
            raise UsageError(f"{what} is not supported", hint=hint)


def device_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the device, as ``DeviceType.backend`` takes them; UsageError as ``refuse_unsupported``.

    As in virtiofsd, extended attributes are off unless something needs them.
    """
    refuse_unsupported(values)
    options = {row.to: values[row.name] for row in OPTIONS if row.to}
    needed = ("xattr", "posix_acl", "security_label", "xattrmap")
    return options | {"xattr": any(options[name] for name in needed)}


def sandbox_of(values: Mapping[str, Any]) -> Sandbox:
    """The sandbox that is asked for, by default ``namespace``; UsageError for what it cannot be."""
    kind = values["sandbox"] or "namespace"
    uid_maps = tuple(IdMap.parse(text) for text in values["uid_map"])
    gid_maps = tuple(IdMap.parse(text) for text in values["gid_map"])
    if (uid_maps or gid_maps) and kind != "namespace":
        raise UsageError("--uid-map and --gid-map are of a namespace", hint="use --sandbox namespace")
    # Handles lead out of a changed root, where a file of the outside looks like one of the share.
    handles = kind != "chroot" and (
        values["inode_file_handles"] != "never" or values["migration_mode"] == "file-handles"
    )
    usual = capabilities.SERVING | ({"dac_read_search"} if handles else set())
    keep = capabilities.changed(frozenset(usual), values["modcaps"])
    return Sandbox(kind, os.path.abspath(values["shared_dir"] or "."), keep, uid_maps, gid_maps)
