"""What a user asked for: a machine, and the limits of its migrations."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from vmsim.errors import UsageError
from vmsim.host.processes import words_of
from vmsim.machine.launch import LaunchOptions


class LimitChoice(msgspec.Struct, frozen=True):
    """What the options say about one migration; times in nanoseconds, None: not said."""

    downtime_limit: int | None = None
    over_limit: str = "go-on"
    bandwidth: int | None = None
    max_rounds: int = 30
    cancel_after: int | None = None


class MachineChoice(msgspec.Struct, frozen=True):
    """What the options say about a machine, ``options`` those of its back-end; see ``Machine``."""

    dialect: str = "upstream"
    ring: str = "split"
    transport: str = "inproc"
    backend: str | None = None
    migration: str = "internal"
    migration_save: str | None = None
    migration_load: str | None = None
    options: Mapping[str, object] = {}
    memory: int = 64 << 20
    queues: int = 1

    @property
    def by_handle(self) -> bool:
        """Whether a migration finds inodes again by file handle alone."""
        return self.options.get("migration_mode") == "file-handles"

    def check(self) -> None:
        """UsageError for what contradicts itself."""
        check_backend(self.transport, self.backend)

    def arguments(self, *, readonly: bool = False) -> LaunchOptions:
        """The keyword arguments of ``Machine``; ``readonly``: of its back-end, too."""
        self.check()
        options = {**self.options, "readonly": True} if readonly else self.options
        return {
            "memory": self.memory, "ring": self.ring, "queues": self.queues, "dialect": self.dialect,
            "migration": self.migration, "migration_save": self.migration_save or "",
            "migration_load": self.migration_load or "", "options": options,
            "transport": self.transport, "backend_command": self.backend,
        }  # fmt: skip


def check_backend(transport: str, backend: str | None) -> None:
    """UsageError for a command that cannot start a back-end, or that nobody would use."""
    if backend is None:
        return
    if transport == "inproc":
        hint = "with --backend, use --transport vhost-user"
        raise UsageError("--backend starts processes of their own", hint=hint)
    words_of(backend, "socket", "dir")
