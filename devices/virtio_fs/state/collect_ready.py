"""Inode records that were encoded while the guest ran: the blob takes those that would not be others now.

Encoding a record takes several times as long as a look at whether it would be another one now. What went
ahead to the destination (:mod:`.early`) is kept for that until the state is saved.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import blob
from .records import FILE_HANDLE, FileHandle, InodeRecord

if TYPE_CHECKING:
    from ..passthrough.inodes import Inode


def in_blob(record: InodeRecord) -> InodeRecord:
    """How the blob says in mode file-handles what ``record`` says with place and handle."""
    return InodeRecord(record.id, record.refcount, FILE_HANDLE, handle=record.file_handle)


class ReadyRun:
    """Consecutive records of the blob: ``body`` is how they stand there, the rest is what they hang on.

    ``records`` are PATH records whose refcounts include ``children``; with ``by_handle`` they have handles
    beside their places, and the blob is going to say those.
    """

    __slots__ = ("body", "facts", "handles", "id_set", "inodes", "parents")

    def __init__(
        self, inodes: list[Inode], records: list[InodeRecord], children: Counter[int], *, by_handle: bool
    ) -> None:
        self.inodes = inodes
        self.id_set = frozenset([record.id for record in records])
        self.handles: list[FileHandle | None] = [record.file_handle for record in records]
        self.parents: dict[int, int] = {}
        self.facts: list[tuple[object, ...]]
        if by_handle:
            self.facts = [(record.refcount, 0) for record in records]
            records = list(map(in_blob, records))
        else:
            self.parents = Counter([record.parent for record in records])
            self.facts = [
                (record.refcount - children[record.id], 0, record.parent, record.name) for record in records
            ]
        self.body = blob.encode_records(records)
