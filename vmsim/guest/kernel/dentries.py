"""The dentry cache: a table of fixed-size records in guest memory, indexed by a dict that is rebuilt from it.

record (288 bytes): parent u64 | node u64 (0: the name does not exist) | expiry_ns u64 | name length u16 |
                    padding | name (up to 255 bytes)

The records in use are the first of the table, so that a large table with little in it is as good as a small
one: when one goes, the last one takes its place.
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
_NAMES: Final = struct.Struct(f"<Q16xH6x{RECORD_BYTES - _HEAD.size}s")
"""What the index needs of a record: parent, length, name."""
ENTRIES_MAX: Final = 1 << 20


class DentryCache:
    """(parent, name) to node id, until the entry's time is over; least recently used entries go first.

    The caller keeps one reference on parent and node per entry: ``put``, ``remove`` and ``clear`` return the
    (parent, node) pairs that are not referred to any more.
    """

    __slots__ = ("_index", "_memory", "_view", "state")

    def __init__(self, memory: GuestMemory, state: CacheState) -> None:
        self.state = state
        self._memory = memory
        if not 0 < state.entries <= ENTRIES_MAX:
            raise StreamError(f"{state.entries} dentries", field="dentries.entries")
        self._view = memory.view(state.table_gpa, state.entries * RECORD_BYTES)
        self._index: dict[tuple[int, bytes], int] = {}
        self._read()

    def _read(self) -> None:
        """Index the table: one pass, as a guest can have a million names."""
        state = self.state
        if state.used < 0:
            state.used = self._gather()
        if state.used > state.entries:
            raise StreamError(f"{state.used} dentries of {state.entries}", field="dentries.used")
        records = self._view[: state.used * RECORD_BYTES]
        keys = [(parent, name[:length]) for parent, length, name in _NAMES.iter_unpack(records)]
        self._index = dict(zip(keys, range(state.used), strict=True))
        lengths = records.cast("H")[12 :: RECORD_BYTES // 2].tolist()
        if records and (not 0 < min(lengths) <= max(lengths) <= NAME_MAX or 0 in self._words(0)):
            raise StreamError("a dentry record is malformed", field="dentries")
        if len(self._index) != state.used:
            raise StreamError("a dentry comes twice", field="dentries")

    def _gather(self) -> int:
        """Bring the records that are anywhere in the table to its beginning; how many there are."""
        used = 0
        for slot, (parent, length, name) in enumerate(_NAMES.iter_unpack(self._view)):
            if parent:
                head = bytes(self._view[slot * RECORD_BYTES :][: _HEAD.size])
                if slot != used:
                    self._write(used, head + name[:length])
                used += 1
        return used

    def _words(self, word: int) -> list[int]:
        """One of the first words (0: parent, 1: node) of each record in use."""
        every = RECORD_BYTES // 8
        return self._view.cast("Q")[word : self.state.used * every : every].tolist()

    @classmethod
    def create(cls, memory: GuestMemory, allocator: PageAllocator, entries: int) -> CacheState:
        """Place an empty table in guest memory; UsageError if it does not fit."""
        gpa = allocator.allocate(pages_bytes(entries * RECORD_BYTES)) if entries <= ENTRIES_MAX else None
        if gpa is None:
            raise UsageError(f"guest memory is too small for {entries} dentries")
        memory.view(gpa, entries * RECORD_BYTES)
        return CacheState(gpa, entries, used=0)

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
        index = self._index
        if len(index) >= self.state.entries:
            gone += self.remove(*next(iter(index)))
        slot = len(index)
        self._write(slot, _HEAD.pack(parent, node, expiry_ns, len(name)) + name)
        index[parent, name] = slot
        self.state.used = slot + 1
        return gone

    def remove(self, parent: int, name: bytes) -> list[tuple[int, int]]:
        """Take one entry out if it is there; its references."""
        index = self._index
        slot = index.pop((parent, name), None)
        if slot is None:
            return []
        view = self._view
        _, node, _, _ = _HEAD.unpack_from(view, slot * RECORD_BYTES)
        last = self.state.used = len(index)
        if slot != last:
            at = last * RECORD_BYTES
            moved, _, _, length = _HEAD.unpack_from(view, at)
            record = bytes(view[at : at + _HEAD.size + length])
            self._write(slot, record)
            index[moved, record[_HEAD.size :]] = slot
        return [(parent, node)]

    def clear(self) -> list[tuple[int, int]]:
        """Take everything out; the references."""
        nodes = self._words(1)
        pairs = [(parent, nodes[slot]) for (parent, _), slot in self._index.items()]
        self._index.clear()
        self.state.used = 0
        return pairs

    def expire_all(self) -> None:
        """Let the time of every entry be over; the entries keep their references until they are replaced."""
        for slot in self._index.values():
            parent, node, _, length = _HEAD.unpack_from(self._view, slot * RECORD_BYTES)
            self._write(slot, _HEAD.pack(parent, node, 0, length))

    def references(self) -> set[int]:
        """The ids of all nodes that entries refer to."""
        return {*self._words(0), *self._words(1)} - {0}
