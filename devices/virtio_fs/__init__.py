"""The virtio-fs device: a shared directory, served by a passthrough FUSE server (virtio 1.3 section 5.11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from fcntl import F_WRLCK, LOCK_EX
from typing import Any, Final

import msgspec

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.checker import StateChecker
from devices.virtio_fs.config import FsDeviceOptions
from devices.virtio_fs.device import VirtioFsDevice
from devices.virtio_fs.inspection import INSPECTION
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.aside import Pool
from devices.virtio_fs.passthrough.host_calls import HostFs
from devices.virtio_fs.passthrough.lock_table import END
from devices.virtio_fs.section import FsSection
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.preflight import Finding, preflight
from vmsim.errors import UsageError
from vmsim.memory import GuestMemory
from vmsim.vhost.dialects import Dialect
from vmsim.vhost.seams import FrontendHost

STATE_PREFIX: Final = "migration_"
"""Options of the state transfer are spelled as virtiofsd's: ``migration_mode`` is ``StateOptions.mode``."""


class VirtioFs:
    """How a machine makes the parts of this device."""

    name = "virtio-fs"
    inspection = INSPECTION
    file_options = frozenset(field.name for field in fields(FsOptions))
    state_options = frozenset(STATE_PREFIX + name for name in StateOptions.__struct_fields__)

    def check_options(self, options: Mapping[str, Any]) -> tuple[FsOptions, StateOptions]:
        """The options by their types; UsageError for names and values that do not exist."""
        unknown = set(options) - self.file_options - self.state_options
        if unknown:
            known = ", ".join(sorted(self.file_options | self.state_options))
            raise UsageError(f"no option {min(unknown)!r}", hint=f"options are {known}")
        mine = {name: value for name, value in options.items() if name in self.file_options}
        state = {
            name.removeprefix(STATE_PREFIX): value
            for name, value in options.items()
            if name in self.state_options
        }
        try:
            file_options = msgspec.convert(mine, FsOptions)
            state_options = msgspec.convert(state, StateOptions)
        except msgspec.ValidationError as error:
            raise UsageError(f"options of the back-end: {error}") from error
        return file_options, state_options.check()

    def has_state(self, options: Mapping[str, Any]) -> bool:
        """Whether a back-end with these options migrates its state (option ``migration_empty_state``)."""
        return not self.check_options(options)[1].empty_state

    def backend(
        self, host: HostFs, share: str, options: Mapping[str, Any], *,
        request_queues: int = 1, notification: bool = False, tag: str = "", pool: Pool | None = None,
    ) -> VirtioFsBackend:  # fmt: skip
        """A back-end that serves ``share``; UsageError or OSError if it cannot."""
        file_options, state_options = self.check_options(options)
        return VirtioFsBackend(
            host, share, file_options, state_options,
            request_queues=request_queues, notification=notification, tag=tag, pool=pool,
        )  # fmt: skip

    def checker(
        self, options: Mapping[str, Any], *, request_queues: int = 1, notification: bool = False
    ) -> StateChecker:
        """What stands for a back-end where a stream is only looked at; errors as of ``backend``."""
        file_options, state_options = self.check_options(options)
        return StateChecker(
            file_options, state_options, request_queues=request_queues, notification=notification
        )

    def device(
        self, options: Mapping[str, Any], memory: GuestMemory, host: FrontendHost, dialect: Dialect
    ) -> VirtioFsDevice:
        """The half that the guest sees; ``options`` are those of ``FsDeviceOptions``."""
        return VirtioFsDevice(FsDeviceOptions(**options), memory, host, dialect)

    def section(self, device: VirtioFsDevice) -> FsSection:
        """The device's section of a migration stream."""
        return FsSection(device)

    def facts(self, backend: VirtioFsBackend) -> dict[str, int]:
        """What a back-end holds, in numbers, for reports."""
        locks = backend.fs.locks
        return {
            "inodes": len(backend.fs.inodes), "handles": len(backend.fs.handles),
            "locks": len(locks.owners) + len(locks.flocks), "waiting": len(backend.fs.waits.waiting),
        }

    def describe(self, backend: VirtioFsBackend) -> Iterator[str]:
        """Every inode, handle, lock and waiting request in a line of its own."""
        for inode in backend.fs.inodes:
            name = inode.name.decode(errors="backslashreplace") if inode.name is not None else "/"
            counts = f"{inode.nlookup} lookups, {inode.mode:#o}"
            yield f"inode {inode.id}: {counts}, last seen as {name!r} in {inode.parent_id}"
        for handle in backend.fs.handles:
            yield f"handle {handle.id}: inode {handle.inode_id}, flags {handle.flags:#o}"
        locks = backend.fs.locks
        for flock in locks.held_flocks():
            yield f"flock of handle {flock.fh}: {'exclusive' if flock.kind & LOCK_EX else 'shared'}"
        for lock in locks.held():
            kind = "write" if lock.kind == F_WRLCK else "read"
            end = "the end" if lock.end == END else lock.end
            yield f"lock on inode {lock.inode_id}: {kind}, {lock.start} to {end}, process {lock.pid}"
        for waiter in backend.fs.waits.waiting.values():
            yield f"request {waiter.unique} waits for a lock of inode {waiter.handle.inode_id}"

    def notes(self, backend: VirtioFsBackend) -> list[str]:
        """What the load of a state found worth saying, losses first."""
        report = backend.report
        if report is None:
            return []
        more = [f"lost: {report.more_losses} more"] if report.more_losses else []
        return [*(f"lost: {loss.reason}" for loss in report.losses), *more, *report.notes]

    def preflight(self, backend: VirtioFsBackend) -> list[Finding]:
        """What would be lost in a migration, or needs attention, most severe first."""
        return preflight(backend.fs, backend.session, backend.state_options)


DEVICE: Final = VirtioFs()

__all__ = ["DEVICE", "VirtioFs"]
