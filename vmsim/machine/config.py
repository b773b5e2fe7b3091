"""What a machine is made of, as plain data: it travels in the stream, so that a stream alone rebuilds it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from vmsim.errors import StreamError, UsageError
from vmsim.guest.config import GuestConfig
from vmsim.limits import MEMORY_REGIONS_MAX, QUEUE_SIZE_MAX, VIRTIO_QUEUE_MAX
from vmsim.machine.installed import DEVICE
from vmsim.memory import PAGE_SIZE

CONFIG_VERSION: Final = 1
RINGS: Final = ("split", "packed")
DIALECTS: Final = ("upstream", "rfc2023")
MIGRATIONS: Final = ("internal", "external", "none")
POLICIES: Final = ("strict", "lenient")
MEMORY_MIN: Final = 1 << 20
MEMORY_MAX: Final = 64 << 30
TAG_BYTES_MAX: Final = 36
MMIO_BASE: Final = 0xFEB0_0000
"""Guest-physical address of the device's register window."""
SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
RAM_SPLIT: Final = 0xC000_0000
"""Memory beyond this size continues above 4 GiB, as on a PC."""


class MachineConfig(msgspec.Struct, forbid_unknown_fields=True):
    """One machine; addresses and sizes in bytes.

    ``memory`` lists the regions as (guest-physical address, size). ``options`` are the back-end's options by
    name, ``notification`` has the device offer a notification queue, ``migration`` is the device property of
    that name, ``migration_save`` and ``migration_load`` the same for one direction ("": as ``migration``),
    ``dialect`` how the back-end's state is transferred.
    """

    memory: list[tuple[int, int]]
    version: int = CONFIG_VERSION
    device: str = DEVICE
    tag: str = "vmsim"
    ring: str = "split"
    queues: int = 1
    queue_size: int = 128
    notification: bool = False
    dialect: str = "upstream"
    migration: str = "internal"
    migration_save: str = ""
    migration_load: str = ""
    policy: str = "strict"
    options: dict[str, object] = {}
    guest: GuestConfig = msgspec.field(default_factory=GuestConfig)

    def check(self) -> None:
        """Raise UsageError that names the first field that cannot be."""
        for field, allowed in (
            ("ring", RINGS), ("dialect", DIALECTS), ("migration", MIGRATIONS), ("policy", POLICIES),
            ("migration_save", ("", *MIGRATIONS)), ("migration_load", ("", *MIGRATIONS)),
        ):  # fmt: skip
            value = getattr(self, field)
            if value not in allowed:
                known = ", ".join(filter(None, allowed))
                raise UsageError(f"{field}={value!r} is not known", hint=f"one of {known}")
        if self.version != CONFIG_VERSION:
            raise UsageError(f"machine description of version {self.version}, not {CONFIG_VERSION}")
        if not 1 <= self.queues < VIRTIO_QUEUE_MAX - 1:
            raise UsageError(f"queues={self.queues} is out of range", hint=f"1 to {VIRTIO_QUEUE_MAX - 2}")
        if not 1 <= self.queue_size <= QUEUE_SIZE_MAX or (
            self.ring == "split" and self.queue_size & (self.queue_size - 1)
        ):
            raise UsageError(f"queue_size={self.queue_size} is no size of a {self.ring} ring")
        if not self.tag or len(self.tag.encode()) > TAG_BYTES_MAX or "\n" in self.tag or "\0" in self.tag:
            raise UsageError(f"tag {self.tag!r} must have 1 to {TAG_BYTES_MAX} bytes and no line break")
        self._check_memory()

    def encode(self) -> bytes:
        """As bytes for a stream."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> MachineConfig:
        """From a stream; StreamError if it is none."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StreamError(f"machine configuration: {error}", field="vmsim/machine") from error

    @staticmethod
    def refusal(error: UsageError) -> StreamError:
        """What ``check`` said about a configuration from a stream."""
        return StreamError(f"machine configuration: {error.message}", field="vmsim/machine", hint=error.hint)

    def _check_memory(self) -> None:
        if not 1 <= len(self.memory) <= MEMORY_REGIONS_MAX:
            raise UsageError(f"{len(self.memory)} memory regions", hint=f"1 to {MEMORY_REGIONS_MAX}")
        total = 0
        end = 0
        for gpa, size in sorted(self.memory):
            if gpa < end or gpa % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or gpa + size > 1 << 52:
                raise UsageError(f"memory region {gpa:#x} + {size:#x}: not whole pages, or overlaps another")
            end = gpa + size
            total += size
        if not MEMORY_MIN <= total <= MEMORY_MAX:
            raise UsageError(f"{total} bytes of memory", hint=f"{MEMORY_MIN} to {MEMORY_MAX}")


def parse_size(size: int | str) -> int:
    """Bytes from ``64M``, ``1G``, ``4096``; UsageError for anything else."""
    if isinstance(size, int):
        return size
    match = SIZE.fullmatch(size.strip())
    if not match:
        raise UsageError(f"{size!r} is not a size", hint="a number with K, M, G or T behind it, such as 64M")
    return int(match[1]) << SHIFTS[match[2].upper()]


def size_text(count: int) -> str:
    """``64M``: a size as an option takes it."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)


def memory_layout(size_bytes: int) -> list[tuple[int, int]]:
    """The usual regions for ``size_bytes`` of memory: up to 3 GiB below 4 GiB, the rest above."""
    size_bytes = (size_bytes + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
    if size_bytes <= RAM_SPLIT:
        return [(0, size_bytes)]
    return [(0, RAM_SPLIT), (1 << 32, size_bytes - RAM_SPLIT)]
