"""Checking a decoded state before the first host call, and bringing its inodes into a workable order.

virtiofsd's loader trusts names and flags (defect D6). Here a name that could leave its directory is refused,
and flags that would create or truncate are dropped and reported. Every refusal is a StreamError with the
field; reference sections 1.2 and 1.5 say what has to be accepted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from vmsim.errors import StreamError
from vmsim.limits import NAME_MAX, PATH_MAX, REPORT_LINES_MAX

from .extension import Extension
from .records import (
    FILE_HANDLE,
    FULL_PATH,
    INVALID,
    PATH,
    ROOT,
    HandleRecord,
    InodeRecord,
    StateBlob,
    describe,
)

SPEC = "virtiofsd state V2"
ROOT_ID = 1
LAST_ID = (1 << 64) - 1
LAST_NEXT = 1 << 63
"""Ids only ever count up: what is beyond this was never given out, and soon there would be none left."""

O_LARGEFILE = 0o100000
O_TMPFILE_BIT = 0o20000000
KEPT_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | O_LARGEFILE
    | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC | os.O_ASYNC
)  # fmt: skip
"""Open flags that a migration repeats; those that create, truncate or only name a file are not among them."""


class Plan(NamedTuple):
    """A checked state.

    ``inodes`` come in an order in which parents precede their children, and their ``refcount`` is now what
    the guest holds: the references of children are taken off. ``counts`` are those of directories among the
    inodes that are there already, ``ids`` all of both.
    """

    inodes: list[InodeRecord]
    handles: list[HandleRecord]
    next_inode: int
    next_handle: int
    notes: list[str]
    counts: dict[int, int]
    ids: set[int]


class Present(NamedTuple):
    """Inodes of the state that are restored already: their ids, how many children name which parent, and
    how to find one: its refcount and parent."""

    ids: set[int]
    parents: Counter[int]
    look: Callable[[int], tuple[int, int]]


def make_plan(blob: StateBlob, extension: Extension | None, present: Present | None = None) -> Plan:
    """Check ``blob`` and order it; StreamError names the field that is wrong.

    ``present`` belong to the state although they are not in ``blob`` any more.
    """
    ids = _unique_ids(blob.inodes)
    done: set[int] = set()
    if present is not None:
        if not ids.isdisjoint(present.ids):
            raise StreamError("an inode comes twice", field="inodes", spec=SPEC)
        done = set(present.ids)
        ids |= done
    for index, record in enumerate(blob.inodes):
        location = record.location
        if location == PATH:
            name = record.name
            if b"/" in name or len(name) > NAME_MAX or name in (b"", b".", b"..") or b"\0" in name:
                check_path(name, f"inodes[{index}].location.Path.filename")
        elif location == FULL_PATH:
            check_path(record.name, f"inodes[{index}].location.FullPath.filename")
        if (location == ROOT) != (record.id == ROOT_ID):
            raise _refusal(index, "location", f"inode {record.id} must not be the root node")
    if ids and ROOT_ID not in ids:
        raise StreamError("the root is missing", field="inodes", spec=SPEC)
    notes: list[str] = []
    children = Counter(record.parent for record in blob.inodes if record.location == PATH)
    planned = _ordered(_with_raw_names(blob.inodes, extension), ids, done)
    counts: dict[int, int] = {}
    if present is not None:
        children.update(present.parents)
        if not ids.issuperset(present.parents):
            raise StreamError("Unresolved references between serialized inodes", field="inodes", spec=SPEC)
        _no_loops(planned, present)
        counts = _counts(present, children)
    _take_off(planned, children)
    next_inode = _next_id("next_inode", blob.next_inode, max(ids, default=ROOT_ID), notes)
    handles = _checked_handles(blob, ids, notes)
    top = max((handle.id for handle in handles), default=-1)
    next_handle = _next_id("next_handle", blob.next_handle, top, notes)
    check_mount_paths(blob.mount_paths)
    if extension is not None:
        _check_references(extension, ids, {handle.id for handle in handles})
    return Plan(planned, handles, next_inode, next_handle, notes, counts, ids)


def lost_anyway(plan: Plan, blob: StateBlob, extension: Extension | None) -> str:
    """What no share has any more, or what the source has lost; empty if there is nothing of that sort."""
    carried = {file.id for file in extension.anonymous} if extension is not None else set()
    stale = set(extension.stale) if extension is not None else set()
    dead: set[int] = set()
    for record in plan.inodes:
        if record.id in carried:
            continue
        if record.location == INVALID:
            if record.id not in stale:
                return f"{describe(record)}: the source did not know where it is"
            dead.add(record.id)
        elif record.location == PATH and record.parent in dead:
            return f"{describe(record)}: its parent did not survive"
        elif record.location == FILE_HANDLE:
            mount = record.handle.mnt_id if record.handle is not None else -1
            if mount not in blob.mount_paths:
                return f"{describe(record)}: the source did not say where its mount {mount} is"
    for handle in plan.handles:
        if handle.inode in dead:
            return f"fh {handle.id} of inode {handle.inode}: its inode did not survive"
    return next((f"inode {loss.id}: {loss.reason}" for loss in extension.losses), "") if extension else ""


def check_path(path: bytes, field: str) -> None:
    """StreamError unless ``path`` is one or more plain names, relative, without ``.`` and ``..``.

    Several names are allowed because virtiofsd's loader allows them; they are resolved strictly beneath the
    directory and through no symlink.
    """
    if b"\0" in path or len(path) >= PATH_MAX or path.startswith(b"/"):
        raise StreamError(f"{path[:80]!r} is no relative path", field=field, spec=SPEC)
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or len(name) > NAME_MAX:
            raise StreamError(
                f"{path[:80]!r} is no plain name", field=field, spec=SPEC,
                hint="a state must not lead out of the shared directory; do not trust where it came from",
            )


def _refusal(index: int, field: str, message: str) -> StreamError:
    return StreamError(message, field=f"inodes[{index}].{field}", spec=SPEC)


def _unique_ids(inodes: list[InodeRecord]) -> set[int]:
    ids = {record.id for record in inodes}
    if len(ids) != len(inodes) or 0 in ids or LAST_ID in ids:
        seen = set()
        for index, record in enumerate(inodes):
            if record.id in seen:
                raise _refusal(index, "id", f"inode {record.id} comes twice")
            if not 0 < record.id < LAST_ID:
                raise _refusal(index, "id", f"{record.id} is no inode id")
            seen.add(record.id)
    return ids


def _with_raw_names(inodes: list[InodeRecord], extension: Extension | None) -> list[InodeRecord]:
    """The records, with the places of names that are not UTF-8 filled in from the extension.

    Such children were not counted in their parents' refcounts, as the blob alone has to be consistent.
    """
    if extension is None or not extension.raw_names:
        return inodes
    raw = {entry.id: entry for entry in extension.raw_names}
    result = []
    for record in inodes:
        entry = raw.get(record.id)
        if entry is None:
            result.append(record)
        else:
            result.append(InodeRecord(record.id, record.refcount, PATH, entry.parent, entry.name))
    return result


def _no_loops(planned: list[InodeRecord], present: Present) -> None:
    """A directory that moved must not lie beneath one that has stayed, and lies beneath it itself."""
    parents = {record.id: record.parent for record in planned if record.location == PATH}
    others = {record.id for record in planned if record.location != PATH}
    safe = {ROOT_ID} | others
    for start in parents:
        nodeid, trail = start, set[int]()
        while nodeid not in safe:
            if nodeid in trail:
                raise StreamError("parents form a cycle", field="inodes", spec=SPEC)
            trail.add(nodeid)
            nodeid = parents[nodeid] if nodeid in parents else present.look(nodeid)[1]
        safe |= trail


def _counts(present: Present, children: Counter[int]) -> dict[int, int]:
    """What the guest holds of the directories that are present."""
    counts = {}
    for nodeid, count in children.items():
        if nodeid in present.ids:
            counts[nodeid] = present.look(nodeid)[0] - count
            if counts[nodeid] < 0:
                raise StreamError(f"inode {nodeid} has {count} children", field="inodes.refcount", spec=SPEC)
    return counts


def _ordered(inodes: list[InodeRecord], ids: set[int], done: set[int]) -> list[InodeRecord]:
    """The records, parents first; those of ``done`` are there already."""
    waiting: dict[int, list[InodeRecord]] = {}
    order: list[InodeRecord] = []
    for record in inodes:
        if record.location == PATH and record.parent not in done:
            waiting.setdefault(record.parent, []).append(record)
            continue
        order.append(record)
        done.add(record.id)
        if waiting:
            freed = waiting.pop(record.id, None)
            while freed:
                child = freed.pop()
                order.append(child)
                done.add(child.id)
                freed += waiting.pop(child.id, ())
    if waiting:
        missing = sorted(set(waiting) - ids)
        why = f"inode {missing[0]} is missing" if missing else "parents form a cycle"
        raise StreamError(
            f"Unresolved references between serialized inodes: {why}", field="inodes", spec=SPEC
        )
    return order


def _take_off(inodes: list[InodeRecord], children: Counter[int]) -> None:
    """Each Path child in the blob took one reference of its parent (reference section 1.2).

    StreamError where the children need more than there is.
    """
    for record in inodes:
        count = children.get(record.id, 0)
        left = record.refcount - count
        if left < 0 or (left == 0 and record.id == ROOT_ID):
            raise StreamError(
                f"inode {record.id} has refcount {record.refcount} and {count} children",
                field="inodes.refcount", spec=SPEC,
                hint="a parent's refcount has to count each of its migrated children",
            )
        record.refcount = left


def _next_id(field: str, value: int, top: int, notes: list[str]) -> int:
    if max(value, top) > LAST_NEXT:
        raise StreamError(f"{max(value, top)} leaves no room for new ids", field=field, spec=SPEC)
    if value > top:
        return value
    if value != top + 1:
        notes.append(f"{field} was {value} although {top} is in use; {top + 1} is next")
    return top + 1


def _checked_handles(blob: StateBlob, ids: set[int], notes: list[str]) -> list[HandleRecord]:
    """The blob's own records, with the flags that a migration repeats."""
    seen: set[int] = set()
    for index, handle in enumerate(blob.handles):
        field = f"handles[{index}]"
        if handle.id in seen or handle.id == LAST_ID:
            raise StreamError(f"fh {handle.id} comes twice", field=f"{field}.id", spec=SPEC)
        if handle.inode not in ids:
            raise StreamError(
                f"fh {handle.id} refers to the unknown inode {handle.inode}",
                field=f"{field}.inode", spec=SPEC,
            )
        seen.add(handle.id)
        flags = clean_flags(handle.flags)
        if flags != handle.flags and len(notes) < REPORT_LINES_MAX:
            notes.append(f"fh {handle.id}: open flags {handle.flags:#x} were reduced to {flags:#x}")
        if flags & os.O_ACCMODE == os.O_ACCMODE:
            raise StreamError(f"fh {handle.id} has no access mode", field=f"{field}.source.flags", spec=SPEC)
        handle.flags = flags
    return blob.handles


def clean_flags(flags: int) -> int:
    """Open flags without those that create or truncate (O_CREAT, O_EXCL, O_TRUNC, O_TMPFILE, O_PATH, ...)."""
    return flags & KEPT_FLAGS


def check_mount_paths(mount_paths: dict[int, bytes]) -> None:
    """StreamError for a mount that is said to lie elsewhere than in the share."""
    for index, path in enumerate(mount_paths.values()):
        if path != b".":
            check_path(path, f"mount_paths[{index}].value")


def _check_references(extension: Extension, ids: set[int], fhs: set[int]) -> None:
    """Every nodeid and fh of the extension must be one of the blob's, and come once where it is a key."""
    nodes: dict[str, list[int]] = {
        "anonymous": [file.id for file in extension.anonymous],
        "raw_names": [entry.id for entry in extension.raw_names],
        "told": [entry.id for entry in extension.told],
    }
    for name, keys in nodes.items():
        if len(set(keys)) != len(keys) or not ids.issuperset(keys):
            raise StreamError("an inode is unknown or comes twice", field=f"extension.{name}", spec=SPEC)
    extra = [handle.id for handle in extension.handles]
    if len(set(extra)) != len(extra) or not fhs.issuperset(extra):
        raise StreamError("an fh is unknown or comes twice", field="extension.handles", spec=SPEC)
    if any(lock.inode not in ids for lock in extension.locks):
        raise StreamError("a lock refers to an unknown inode", field="extension.locks", spec=SPEC)
    if any(lock.fh not in fhs for lock in extension.flocks):
        raise StreamError("a lock refers to an unknown fh", field="extension.flocks", spec=SPEC)
