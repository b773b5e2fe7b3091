"""The device's section of a migration stream: virtio state, then the back-end's state, or not.

Which kinds of migration a device takes part in is its property ``migration``, settable at any time and apart
for saving and loading:

* ``none``: it blocks the migration, and says so;
* ``external``: the stream has no back-end state; somebody else keeps the back-end and attaches it again;
* ``internal``: the stream carries the back-end's state.

Layouts, both read: QEMU's (version 0, state in the subsection ``vhost-user-fs-backend``) and that of the RFC
of 2023 (version 1, state in the main section). The dialect of the device decides which one is written.
"""

from __future__ import annotations

from devices.virtio_fs.device import VirtioFsDevice
from vmsim.errors import HostError, MigrationBlocked, MigrationError, PeerError, StreamError
from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.dialects.base import error_number
from vmsim.virtio.device_state import load_state, save_state
from vmsim.virtio.vmstate import virtio_load, virtio_save

VMSD_NAME = "vhost-user-fs"
SUBSECTION = "vhost-user-fs-backend"
FIELD = "back-end"
FIELD_TYPE = "virtio-fs back-end state"
RFC_VERSION = 1


class FsSection:
    """Saves and loads one device; implements ``Section`` of :mod:`vmsim.migration`."""

    instance_id = 0

    def __init__(self, device: VirtioFsDevice) -> None:
        self.device = device
        self.idstr = f"{device.options.bus}/{VMSD_NAME}"

    @property
    def version_id(self) -> int:
        """The version to write: 1 only if the main section carries back-end state."""
        return self.device.dialect.section_version if self.device.migration_save == "internal" else 0

    max_version_id = RFC_VERSION
    """The newest version that ``load`` reads."""

    def check_savable(self) -> None:
        """MigrationBlocked, in QEMU's words, if the device cannot be saved as configured."""
        device = self.device
        if device.migration_save == "none":
            raise MigrationBlocked(
                f"Migration is blocked by device {device.options.path}", step="check", side="source",
                hint="set migration=internal (state in the stream) or external (the back-end is kept)",
            )
        frontend = device.frontend
        internal = device.migration_save == "internal"
        if internal and frontend is not None and not frontend.supports_device_state:
            raise MigrationBlocked(
                f"Back-end of {device.describe()} does not support migration through qemu",
                step="check", side="source", hint=device.dialect.unsupported_hint,
            )

    def save(self, out: VmWriter) -> None:
        """Write the section's body; MigrationBlocked, or MigrationError naming what failed."""
        device = self.device
        self.check_savable()
        frontend = device.frontend
        if frontend is not None and frontend.running:
            raise MigrationError(
                f"{device.describe()} is saved while its rings run", step="save device", side="source"
            )
        if frontend is None and device.migration_save == "internal":
            raise MigrationError(
                f"{device.describe()} has no back-end to save the state of", step="save device", side="source"
            )
        with out.opaque("virtio", "virtio"):
            virtio_save(out, save_state(device.virtio, device.memory))
        if device.migration_save != "internal":
            return
        if device.dialect.subsection:
            with out.subsection(SUBSECTION, 0):
                self._save_backend(out)
        else:
            self._save_backend(out)

    def _save_backend(self, out: VmWriter) -> None:
        assert self.device.frontend is not None
        with out.opaque(FIELD, FIELD_TYPE):
            pieces = self.device.frontend.save_backend_state()
            while True:
                try:
                    piece = next(pieces, None)
                except (PeerError, HostError) as error:
                    raise self._failure("saving", error) from error
                if piece is None:
                    return
                out.output.write(piece)

    def load(self, src: VmReader, version_id: int) -> None:
        """Read the section's body into the device and its back-end; nothing runs yet."""
        device = self.device
        kind = device.migration_load
        if kind == "none":
            raise MigrationBlocked(
                f"Migration is blocked by device {device.options.path}",
                step="load device", side="destination",
                hint="set the device's property migration on the destination to external or internal",
            )
        if version_id not in (0, RFC_VERSION):
            raise StreamError(
                f"incoming version_id {version_id} is too new for local version_id {RFC_VERSION}",
                offset=src.offset, field=self.idstr,
            )
        state = virtio_load(src)
        self._check_tag(src, state.config)
        load_state(device.virtio, state, device.memory)
        blob: bytes | None = None
        if version_id == RFC_VERSION:
            self._expect_state(kind, src)
            blob = DIALECTS["rfc2023"].read_state(lambda size: src.buffer(FIELD, size))
        else:
            for _ in src.subsections(VMSD_NAME, {SUBSECTION: 0}):
                self._expect_state(kind, src)
                blob = DIALECTS["upstream"].read_state(lambda size: src.buffer(FIELD, size))
        if blob is not None:
            self._load_backend(blob)
        elif kind == "internal":
            raise StreamError(
                f"the stream has no back-end state for {device.describe()}",
                offset=src.offset, field=self.idstr,
                hint="save the source with migration=internal, or set migration=external on the destination "
                "and attach the same back-end again",
            )

    def _expect_state(self, kind: str, src: VmReader) -> None:
        if kind != "internal":
            raise StreamError(
                f"the stream has back-end state for {self.device.describe()}, and none was expected",
                offset=src.offset, field=self.idstr,
                hint="set migration=internal on the destination, or save the source with migration=external",
            )

    def _check_tag(self, src: VmReader, config: bytes) -> None:
        """QEMU loads another tag without a word, and the guest finds its mount gone; we do not."""
        own = bytes(self.device.virtio.config[:36])
        if any(config[:36]) and config[:36] != own:
            there = config[:36].rstrip(b"\0").decode("utf-8", "replace")
            raise StreamError(
                f'the stream is of a device with tag "{there}", this is {self.device.describe()}',
                offset=src.offset, field=self.idstr, hint="give the destination the tag of the source",
            )

    def _load_backend(self, blob: bytes) -> None:
        frontend = self.device.frontend
        if frontend is None:
            raise MigrationError(
                f"{self.device.describe()} has no back-end to load state into", step="load device",
                side="destination",
            )
        if not frontend.supports_device_state:
            raise MigrationError(
                f"Back-end of {self.device.describe()} does not support migration through qemu",
                step="load device", side="destination", hint=self.device.dialect.unsupported_hint,
            )
        try:
            frontend.load_backend_state(blob)
        except (PeerError, HostError) as error:
            raise self._failure("loading", error) from error

    def _failure(self, doing: str, error: PeerError | HostError) -> MigrationError:
        side = "source" if doing == "saving" else "destination"
        frontend = self.device.frontend
        reason, hint = ("", "") if frontend is None else frontend.transport.reason()
        why = f"{error.message}: {reason}" if reason else error.message
        unannounced = self.device.dialect.feature < 0  # then a back-end that lacks it fails like any other
        return MigrationError(
            f"Error {doing} back-end state of {self.device.describe()}: {why}",
            step=f"{doing} back-end state", side=side, errno=error_number(error), spec=error.spec,
            hint=hint or error.hint or (self.device.dialect.unsupported_hint if unannounced else ""),
        )
