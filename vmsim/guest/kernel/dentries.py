"""The dentry cache: a table of fixed-size records in guest memory, indexed by a dict that is rebuilt from it.

record (288 bytes): parent u64 | node u64 (0: the name does not exist) | expiry_ns u64 | name length u16 |
                    padding | name (up to 255 bytes);  parent 0: the record is free
"""

from __future__ import annotations

import struct
from typing import Final

from vmsim.errors import StreamError, UsageError
from vmsim.guest.driver.alloc import PageAllocator, pages_bytes
from vmsim.guest.state import CacheState
from vmsim.limits import NAME_MAX
from vmsim.memory import GuestMemory

_HEAD: Final = struct.Struct("<QQQH6x")
RECORD_BYTES: Final = 288
_RECORD: Final = struct.Struct(f"{_HEAD.format}{RECORD_BYTES - _HEAD.size}s")
ENTRIES_MAX: Final = 1 << 20


class DentryCache:
    """(parent, name) to node id, until the entry's time is over; least recently used entries go first.

    The caller keeps one reference on parent and node per entry: ``put``, ``remove`` and ``clear`` return the
    (parent, node) pairs that are not referred to any more.
    """

    __slots__ = ("_free", "_index", "_memory", "_view", "state")

    def __init__(self, memory: GuestMemory, state: CacheState) -> None:
        self.state = state
        self._memory = memory
        if not 0 < state.entries <= ENTRIES_MAX:
            raise StreamError(f"{state.entries} dentries", field="dentries.entries")
        self._view = memory.view(state.table_gpa, state.entries * RECORD_BYTES)
        self._index: dict[tuple[int, bytes], int] = {}
        self._free: list[int] = []
        self._read()

    def _read(self) -> None:
        """Index the table: one pass, as a guest can have a million names."""
        index, free = self._index, self._free
        used = 0
        for slot, (parent, _, _, length, name) in enumerate(_RECORD.iter_unpack(self._view)):
            if parent:
                index[parent, name[:length]] = slot
                used += 1
                if not 0 < length <= NAME_MAX:
                    raise StreamError(f"dentry record {slot} is malformed", field="dentries")
            else:
                free.append(slot)
        if len(index) != used:
            raise StreamError("a dentry comes twice", field="dentries")
        free.reverse()

    @classmethod
    def create(cls, memory: GuestMemory, allocator: PageAllocator, entries: int) -> CacheState:
        """Place an empty table in guest memory; UsageError if it does not fit."""
        size = pages_bytes(entries * RECORD_BYTES)
        gpa = allocator.allocate(size) if entries <= ENTRIES_MAX else None
        if gpa is None:
            raise UsageError(f"guest memory is too small for {entries} dentries")
        memory.write(gpa, bytes(size))
        return CacheState(gpa, entries)

    def __len__(self) -> int:
        return len(self._index)

    def _write(self, slot: int, data: bytes) -> None:
        self._memory.write(self.state.table_gpa + slot * RECORD_BYTES, data)

    def get(self, parent: int, name: bytes, now_ns: int) -> int | None:
        """The node id, 0 if the name is known not to exist, None if nothing (still) valid is known."""
        key = (parent, name)
        slot = self._index.get(key)
        if slot is None:
            return None
        _, node, expiry, _ = _HEAD.unpack_from(self._view, slot * RECORD_BYTES)
        if expiry <= now_ns:
            return None
        del self._index[key]
        self._index[key] = slot
        return int(node)

    def put(self, parent: int, name: bytes, node: int, expiry_ns: int) -> list[tuple[int, int]]:
        """Enter or replace one entry; the references that are free again."""
        gone = self.remove(parent, name)
        if not self._free:
            gone += self.remove(*next(iter(self._index)))
        slot = self._free.pop()
        self._write(slot, _HEAD.pack(parent, node, expiry_ns, len(name)) + name)
        self._index[parent, name] = slot
        return gone

    def remove(self, parent: int, name: bytes) -> list[tuple[int, int]]:
        """Take one entry out if it is there; its references."""
        slot = self._index.pop((parent, name), None)
        if slot is None:
            return []
        _, node, _, _ = _HEAD.unpack_from(self._view, slot * RECORD_BYTES)
        self._write(slot, bytes(_HEAD.size))
        self._free.append(slot)
        return [(parent, node)]

    def clear(self) -> list[tuple[int, int]]:
        """Take everything out; the references."""
        return [pair for parent, name in list(self._index) for pair in self.remove(parent, name)]

    def expire_all(self) -> None:
        """Let the time of every entry be over; the entries keep their references until they are replaced."""
        for slot in self._index.values():
            parent, node, _, length = _HEAD.unpack_from(self._view, slot * RECORD_BYTES)
            self._write(slot, _HEAD.pack(parent, node, 0, length))

    def references(self) -> list[tuple[int, int]]:
        """The (parent, node) of every entry."""
        return [(parent, node) for parent, node, *_ in _RECORD.iter_unpack(self._view) if parent]
