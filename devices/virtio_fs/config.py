"""The virtio-fs device's numbers: feature bit, queues, configuration space (virtio 1.3 section 5.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple

from vmsim.errors import UsageError
from vmsim.virtio.constants import F_RING_PACKED, RING_FEATURES
from vmsim.wire.layout import U32, Layout

VIRTIO_FS_F_NOTIFICATION: Final = 1 << 0
"""The device has a notification queue."""

HIPRIO_QUEUE: Final = 0
NOTIFICATION_QUEUE: Final = 1
"""Only if VIRTIO_FS_F_NOTIFICATION was accepted; else the request queues begin here."""

TAG_BYTES: Final = 36
QUEUE_SIZE_MAX: Final = 1024
"""Entries of a queue (QEMU's vhost-user-fs)."""
REQUEST_QUEUES_MAX: Final = 1022

MigrationKind = Literal["none", "external", "internal"]
MIGRATION_KINDS: Final = ("none", "external", "internal")


class FsConfig(NamedTuple):
    """``struct virtio_fs_config``; ``notify_buf_size`` exists only with VIRTIO_FS_F_NOTIFICATION."""

    tag: Annotated[bytes, "36s"]
    num_request_queues: U32
    notify_buf_size: U32


FS_CONFIG: Final = Layout(FsConfig)


@dataclass(slots=True)
class FsDeviceOptions:
    """The device as its user asks for it; names and defaults are those of QEMU's vhost-user-fs.

    ``features`` limits what is offered to the driver of rings. ``path`` names the device in messages, ``bus``
    in the migration stream. ``migration`` is described in :mod:`.section`, ``migration_save`` and
    ``migration_load`` are the same for one direction.
    """

    tag: str = "vmsim"
    num_request_queues: int = 1
    queue_size: int = 128
    notification: bool = False
    notify_buf_size: int = 4096
    features: int = RING_FEATURES
    migration: MigrationKind = "internal"
    migration_save: MigrationKind | None = None
    migration_load: MigrationKind | None = None
    path: str = "/machine/peripheral/fs0"
    bus: str = "virtio-mmio@00000000feb00000"

    def __post_init__(self) -> None:
        size = len(self.tag.encode())
        if not 1 <= size <= TAG_BYTES or "\0" in self.tag or "\n" in self.tag:
            raise UsageError(f"tag {self.tag!r}", hint=f"1 to {TAG_BYTES} bytes without NUL and newline")
        if not 1 <= self.num_request_queues <= REQUEST_QUEUES_MAX:
            raise UsageError(f"{self.num_request_queues} request queues", hint=f"1 to {REQUEST_QUEUES_MAX}")
        odd = self.queue_size & (self.queue_size - 1) and not self.features & F_RING_PACKED
        if not 1 <= self.queue_size <= QUEUE_SIZE_MAX or odd:
            hint = f"up to {QUEUE_SIZE_MAX}, and a power of 2 where there are only split rings"
            raise UsageError(f"queue size {self.queue_size}", hint=hint)
        check_migration_kind(self.migration)

    @property
    def queue_count(self) -> int:
        """hiprio, notification if offered, requests."""
        return 1 + self.notification + self.num_request_queues

    def config_space(self) -> bytes:
        """The configuration space: 40 bytes, 44 with a notification queue."""
        size = FS_CONFIG.size if self.notification else FS_CONFIG.size - 4
        return FS_CONFIG.pack(self.tag.encode(), self.num_request_queues, self.notify_buf_size)[:size]


def check_migration_kind(kind: str) -> MigrationKind:
    """``kind`` if it is one of none, external, internal; UsageError otherwise."""
    for known in MIGRATION_KINDS:
        if kind == known:
            return known
    raise UsageError(f"no migration kind {kind!r}", hint="none, external or internal")
