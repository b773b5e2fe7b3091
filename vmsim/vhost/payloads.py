"""The payloads of vhost-user messages: one NamedTuple per layout, and how each becomes bytes.

Numbers are in host byte order. Sizes are those of the C structures, padding included.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Generic, NamedTuple, Protocol, TypeVar

from vmsim.errors import PeerError
from vmsim.wire.layout import U8, U16, U32, U64, Layout


class PayloadError(PeerError):
    """A payload that does not have the size or the content that its message demands."""


def _bad_size(expected: str, data: bytes) -> PayloadError:
    return PayloadError(f"Received bad message size, expected {expected}, received {len(data)}")


class Codec(Protocol):
    """How one kind of payload is written and read; sizes in bytes."""

    name: str
    size_min: int
    size_max: int

    def encode(self, payload: Any) -> bytes:
        """The payload's bytes."""
        ...

    def decode(self, data: bytes) -> Any:
        """The payload; PayloadError if it is not one."""
        ...


class Number(NamedTuple):
    """A plain 64-bit number (``u64``)."""

    value: U64


class VringState(NamedTuple):
    """A ring's number and one value: size, base or enable."""

    ring: U32
    num: U32


class VringAddr(NamedTuple):
    """Where a ring lies, in addresses of the front-end's process; ``log`` is guest-physical."""

    ring: U32
    flags: U32
    desc: U64
    used: U64
    avail: U64
    log: U64


class MemoryRegion(NamedTuple):
    """One region of guest memory and where it starts in the descriptor that comes with it."""

    guest_addr: U64
    size_bytes: U64
    user_addr: U64
    mmap_offset: U64


class MemoryTable(NamedTuple):
    """All regions at once (at most 8)."""

    regions: tuple[MemoryRegion, ...]


class SlotRegion(NamedTuple):
    """ADD_MEM_REG and REM_MEM_REG: a region after eight bytes of padding."""

    padding: U64
    guest_addr: U64
    size_bytes: U64
    user_addr: U64
    mmap_offset: U64

    @property
    def region(self) -> MemoryRegion:
        """Without the padding."""
        return MemoryRegion(*self[1:])


class LogArea(NamedTuple):
    """Where the dirty bitmap lies in its descriptor."""

    mmap_size: U64
    mmap_offset: U64


class IotlbMessage(NamedTuple):
    """An IOTLB update or miss."""

    iova: U64
    size_bytes: U64
    user_addr: U64
    perm: U8
    type: U8
    padding: Annotated[bytes, "6s"] = bytes(6)


class ConfigSpace(NamedTuple):
    """Part of the device's configuration space."""

    offset: int
    flags: int
    data: bytes


class VringArea(NamedTuple):
    """A page through which the driver can notify the back-end directly."""

    index_and_flags: U64
    size_bytes: U64
    offset: U64


class Inflight(NamedTuple):
    """The buffer in which requests in flight are recorded."""

    mmap_size: U64
    mmap_offset: U64
    num_queues: U16
    queue_size: U16
    padding: Annotated[bytes, "4s"] = bytes(4)


class DeviceState(NamedTuple):
    """Direction (0 save, 1 load) and phase (0 stopped) of a state transfer."""

    direction: U32
    phase: U32


class Uuid(NamedTuple):
    """The name of a shared object."""

    uuid: Annotated[bytes, "16s"]


class ShmemConfig(NamedTuple):
    """The sizes of the shared memory regions that exist."""

    regions: U32
    padding: U32
    sizes: Annotated[bytes, "2048s"]


class ShmemMap(NamedTuple):
    """A back-end's request to map a file into a shared memory region (flags bit 0: writable)."""

    shmid: U8
    padding: Annotated[bytes, "7s"]
    fd_offset: U64
    shm_offset: U64
    size_bytes: U64
    flags: U64


class StateChunk(NamedTuple):
    """rfc2023: a piece of the state, at an offset of the whole; in a reply ``size_bytes`` is what remains."""

    state_offset: U64
    size_bytes: U64


class Opaque(NamedTuple):
    """Bytes whose meaning belongs to a device class that vmsim does not have."""

    data: bytes


R = TypeVar("R", bound=tuple[Any, ...])


class Fixed(Generic[R]):
    """A payload of one fixed layout, in host byte order."""

    def __init__(self, record: type[R]) -> None:
        self.layout = Layout(record, "=")
        self.name = self.layout.name
        self.size_min = self.size_max = self.layout.size

    def encode(self, payload: R) -> bytes:
        """The record's bytes."""
        return self.layout.pack_record(payload)

    def decode(self, data: bytes) -> R:
        """The record."""
        if len(data) != self.layout.size:
            raise _bad_size(str(self.layout.size), data)
        return self.layout.unpack(data)


NUMBER = Fixed(Number)
VRING_STATE = Fixed(VringState)
VRING_ADDR = Fixed(VringAddr)
REGION = Fixed(MemoryRegion)
SLOT_REGION = Fixed(SlotRegion)
LOG_AREA = Fixed(LogArea)
IOTLB = Fixed(IotlbMessage)
VRING_AREA = Fixed(VringArea)
INFLIGHT = Fixed(Inflight)
DEVICE_STATE = Fixed(DeviceState)
UUID = Fixed(Uuid)
SHMEM_CONFIG = Fixed(ShmemConfig)
SHMEM_MAP = Fixed(ShmemMap)
STATE_CHUNK = Fixed(StateChunk)

MEMORY_TABLE_REGIONS_MAX = 8
CONFIG_BYTES_MAX = 256
CRYPTO_SESSION_BYTES_MAX = 2048


class MemoryTableCodec:
    """Count, padding, regions: 8 + 32 n bytes."""

    name = "MemoryTable"
    head = struct.Struct("=II")
    size_min = 8
    size_max = 8 + 32 * MEMORY_TABLE_REGIONS_MAX

    def encode(self, payload: MemoryTable) -> bytes:
        """The table's bytes."""
        regions = payload.regions
        return self.head.pack(len(regions), 0) + b"".join(map(REGION.encode, regions))

    def decode(self, data: bytes) -> MemoryTable:
        """The table; the size must be exactly that of the regions it announces."""
        if len(data) < 8:
            raise _bad_size("at least 8", data)
        count, _ = self.head.unpack_from(data)
        if count > MEMORY_TABLE_REGIONS_MAX:
            raise PayloadError(f"memory table of {count} regions, at most {MEMORY_TABLE_REGIONS_MAX} allowed")
        size = 8 + REGION.layout.size * count
        if len(data) != size:
            raise _bad_size(str(size), data)
        return MemoryTable(tuple(REGION.layout.unpack(data, at) for at in range(8, size, REGION.layout.size)))


class ConfigCodec:
    """Offset, size, flags, then ``size`` bytes."""

    name = "ConfigSpace"
    head = struct.Struct("=III")
    size_min = 12
    size_max = 12 + CONFIG_BYTES_MAX

    def encode(self, payload: ConfigSpace) -> bytes:
        """The header and the bytes."""
        return self.head.pack(payload.offset, len(payload.data), payload.flags) + payload.data

    def decode(self, data: bytes) -> ConfigSpace:
        """The part of the configuration space; its size field must say how many bytes follow."""
        if len(data) < 12:
            raise _bad_size("at least 12", data)
        offset, size, flags = self.head.unpack_from(data)
        if len(data) != 12 + size or size > CONFIG_BYTES_MAX:
            raise PayloadError(f"config space of {size} bytes in a payload of {len(data)} bytes")
        return ConfigSpace(offset, flags, data[12:])


class OpaqueCodec:
    """Any bytes up to a bound."""

    name = "Opaque"
    size_min = 0
    size_max = CRYPTO_SESSION_BYTES_MAX

    def encode(self, payload: Opaque) -> bytes:
        """The bytes."""
        return payload.data

    def decode(self, data: bytes) -> Opaque:
        """The bytes, if there are not too many."""
        if len(data) > self.size_max:
            raise PayloadError(f"payload of {len(data)} bytes, at most {self.size_max} are allowed")
        return Opaque(data)


class LogReplyCodec:
    """The reply to SET_LOG_BASE: QEMU ignores its content; virtiofsd echoes the area, libvhost-user a u64."""

    name = "LogArea"
    size_min = 0
    size_max = LOG_AREA.size_max

    def encode(self, payload: LogArea) -> bytes:
        """The area, echoed."""
        return LOG_AREA.encode(payload)

    def decode(self, data: bytes) -> LogArea | Number | None:
        """The area, a number, or nothing."""
        if len(data) == LOG_AREA.size_max:
            return LOG_AREA.decode(data)
        if len(data) == NUMBER.size_max:
            return NUMBER.decode(data)
        if data:
            raise _bad_size("16", data)
        return None


class ConfigReplyCodec(ConfigCodec):
    """The same; no payload at all stands for an error (libvhost-user; rust-vmm sends a size of 0)."""

    size_min = 0

    def encode(self, payload: ConfigSpace) -> bytes:
        """The header and the bytes; nothing if there are none."""
        return super().encode(payload) if payload.data else b""

    def decode(self, data: bytes) -> ConfigSpace:
        """The part of the configuration space, without bytes in case of an error."""
        return super().decode(data) if data else ConfigSpace(0, 0, b"")


MEMORY_TABLE = MemoryTableCodec()
CONFIG = ConfigCodec()
CONFIG_REPLY = ConfigReplyCodec()
OPAQUE = OpaqueCodec()
LOG_REPLY = LogReplyCodec()
