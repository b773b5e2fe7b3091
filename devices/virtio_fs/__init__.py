"""The virtio-fs device: a shared directory, served by a passthrough FUSE server (virtio 1.3 section 5.11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import msgspec

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.config import FsDeviceOptions
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.aside import Pool
from devices.virtio_fs.passthrough.host_calls import HostFs
from devices.virtio_fs.state.options import PREFIX, StateOptions
from vmsim.errors import UsageError
from vmsim.memory import GuestMemory
from vmsim.vhost.device_options import DeviceOption, options_of
from vmsim.vhost.device_type import DeviceInspection, DeviceSection, DeviceType, FrontDevice, ServingDevice
from vmsim.vhost.dialects import Dialect
from vmsim.vhost.seams import FrontendHost


class VirtioFs:
    """How a machine makes the parts of this device; what only the guest's side needs is imported there."""

    name = "virtio-fs"
    file_options = frozenset(field.name for field in fields(FsOptions))
    state_options = frozenset(PREFIX + name for name in StateOptions.__struct_fields__)

    @property
    def options(self) -> tuple[DeviceOption, ...]:
        """What a command line may say of a back-end."""
        return (*options_of(FsOptions), *options_of(StateOptions, PREFIX))

    @property
    def inspection(self) -> DeviceInspection:
        """What looks at its sections and states."""
        from devices.virtio_fs.inspection import INSPECTION

        return INSPECTION

    def check_options(self, options: Mapping[str, Any]) -> tuple[FsOptions, StateOptions]:
        """The options by their types; UsageError for names and values that do not exist."""
        unknown = set(options) - self.file_options - self.state_options
        if unknown:
            known = ", ".join(sorted(self.file_options | self.state_options))
            raise UsageError(f"no option {min(unknown)!r}", hint=f"options are {known}")
        mine = {name: value for name, value in options.items() if name in self.file_options}
        state = {
            name.removeprefix(PREFIX): value
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
    ) -> ServingDevice:
        """What stands for a back-end where a stream is only looked at; errors as of ``backend``."""
        from devices.virtio_fs.checker import StateChecker

        file_options, state_options = self.check_options(options)
        return StateChecker(
            file_options, state_options, request_queues=request_queues, notification=notification
        )

    def device(
        self, options: Mapping[str, Any], memory: GuestMemory, host: FrontendHost, dialect: Dialect
    ) -> FrontDevice:
        """The half that the guest sees; ``options`` are those of ``FsDeviceOptions``."""
        from devices.virtio_fs.device import VirtioFsDevice

        return VirtioFsDevice(FsDeviceOptions(**options), memory, host, dialect)

    def section(self, device: FrontDevice) -> DeviceSection:
        """The device's section of a migration stream."""
        from devices.virtio_fs.device import VirtioFsDevice
        from devices.virtio_fs.section import FsSection

        assert isinstance(device, VirtioFsDevice)
        return FsSection(device)


DEVICE: Final[DeviceType] = VirtioFs()

__all__ = ["DEVICE", "VirtioFs"]
