"""What is wrong with a back-end's state that was read: each rule is one function over the facts.

An error is what virtiofsd 1.13.2 or vmsim refuses by default, or what harms files or the guest once loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from vmsim.errors import StreamError
from vmsim.limits import NAME_MAX
from vmsim.wire.tree import Finding, Severity

from .extension import Extension
from .negotiation import check_agreement
from .records import FILE_HANDLE, FULL_PATH, INVALID, PATH, ROOT, V1, StateBlob
from .restore_plan import LAST_ID, LAST_NEXT, ROOT_ID, check_path

SAME_MAX: Final = 100
"""Findings of one kind that are told one by one."""

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
DO_NOT_LOAD: Final = "do not load it with privilege; find out who wrote it"
SAVE_AGAIN: Final = "save again; the state is damaged or of a defective back-end"


class Held(NamedTuple):
    """Where an element lies in the state."""

    offset: int = -1
    size: int = 0


NOT_READ: Final = Held()


@dataclass
class Facts:
    """What was read of a state and where; ``complete`` once the blob was read to its end at ``end``."""

    blob: StateBlob
    inode_places: list[Held] = field(default_factory=list)
    handle_places: list[Held] = field(default_factory=list)
    options_place: Held = NOT_READ
    mounts_place: Held = NOT_READ
    next_inode_at: int = -1
    next_handle_at: int = -1
    extension: Extension | None = None
    end: int = 0
    complete: bool = False

    @cached_property
    def children(self) -> Counter[int]:
        """How many Path inodes each inode is the parent of; only used once everything was read."""
        return Counter(record.parent for record in self.blob.inodes if record.location == PATH)

    @cached_property
    def ids(self) -> set[int]:
        """All inode ids."""
        return {record.id for record in self.blob.inodes}

    @cached_property
    def carried(self) -> set[int]:
        """Inodes whose place or contents the extension has, though the blob calls them Invalid."""
        extension = self.extension
        if extension is None:
            return set()
        return {file.id for file in extension.anonymous} | {name.id for name in extension.raw_names}


def lint(facts: Facts) -> list[Finding]:
    """All findings; of each kind a bounded number, and how many more there are."""
    rules = [_ids, _locations, _names, _handles, _flags]
    if facts.complete:
        rules += [_root, _parents, _refcounts, _next_ids, _mounts, _agreement, _unused, _general]
    kept: list[Finding] = []
    counts: Counter[str] = Counter()
    for rule in rules:
        for finding in rule(facts):
            counts[finding.code] += 1
            if counts[finding.code] <= SAME_MAX:
                kept.append(finding)
    for code, count in counts.items():
        if count > SAME_MAX:
            first = next(finding for finding in kept if finding.code == code)
            more = f"{count - SAME_MAX} more findings of this kind"
            kept.append(Finding(first.severity, code, more, first.field.partition("[")[0], hint=first.hint))
    return kept


def _at(facts: Facts, index: int) -> int:
    return facts.inode_places[index].offset if index < len(facts.inode_places) else -1


def _ids(facts: Facts) -> Iterator[Finding]:
    seen: set[int] = set()
    for index, record in enumerate(facts.blob.inodes):
        where, at = f"inodes[{index}].id", _at(facts, index)
        if record.id in seen:
            yield Finding(
                ERROR, "inode-twice", f"inode {record.id} comes twice: the load fails", where, at, SAVE_AGAIN
            )
        elif not 0 < record.id < LAST_ID:
            yield Finding(ERROR, "inode-id", f"{record.id} is no inode id", where, at, SAVE_AGAIN)
        seen.add(record.id)
    handles: set[int] = set()
    for index, handle in enumerate(facts.blob.handles):
        at = facts.handle_places[index].offset
        if handle.id in handles:
            text = f"handle {handle.id} comes twice: one of them is lost"
            yield Finding(ERROR, "handle-twice", text, f"handles[{index}].id", at, SAVE_AGAIN)
        handles.add(handle.id)


def _locations(facts: Facts) -> Iterator[Finding]:
    for index, record in enumerate(facts.blob.inodes):
        where, at = f"inodes[{index}].location", _at(facts, index)
        if (record.location == ROOT) != (record.id == ROOT_ID):
            text = f"inode {record.id} {'is' if record.location == ROOT else 'is not'} the root node"
            yield Finding(
                ERROR, "root-location", f"{text}: only inode 1 may and must be", where, at, SAVE_AGAIN
            )
        if record.location == INVALID:
            if record.id in facts.carried:
                yield Finding(
                    WARNING,
                    "invalid-inode",
                    f"inode {record.id} is Invalid to virtiofsd, which refuses the load"
                    " (--migration-on-error=abort); vmsim restores it from the extension",
                    where,
                    at,
                    "load it with vmsim, or with --migration-on-error=guest-error",
                )
            else:
                yield Finding(
                    ERROR,
                    "invalid-inode",
                    f"inode {record.id} is Invalid (unlinked, or its path was lost): the load"
                    " fails by default; with guest-error the guest gets EIO for it",
                    where,
                    at,
                    "load with --migration-on-error=guest-error, or save with --migration-mode=file-handles",
                )
        elif record.location == FULL_PATH:
            text = f"inode {record.id} has a full path, which virtiofsd reads but never writes"
            yield Finding(NOTE, "full-path", text, where, at, "it was written by another program")


def _names(facts: Facts) -> Iterator[Finding]:
    for index, record in enumerate(facts.blob.inodes):
        if record.location not in (PATH, FULL_PATH):
            continue
        name, where, at = record.name, f"inodes[{index}].location.filename", _at(facts, index)
        problem = ""
        if record.location == PATH and b"/" in name:
            problem = "has a slash"
        elif b"\0" in name:
            problem = "has a NUL byte"
        elif not name or name in (b".", b".."):
            problem = "is no name of a file"
        elif len(name) > NAME_MAX and record.location == PATH:
            problem = f"has more than {NAME_MAX} bytes"
        else:
            try:
                check_path(name, where)
            except StreamError:
                problem = "leads out of its directory"
        if problem:
            yield Finding(
                ERROR,
                "unsafe-name",
                f"the name {name[:80]!r} {problem}: virtiofsd opens it as it is, and may leave"
                " the shared directory",
                where,
                at,
                DO_NOT_LOAD,
            )


def _handles(facts: Facts) -> Iterator[Finding]:
    if not facts.complete:
        return
    invalid = {record.id for record in facts.blob.inodes if record.location == INVALID} - facts.carried
    for index, handle in enumerate(facts.blob.handles):
        where, at = f"handles[{index}].inode", facts.handle_places[index].offset
        if handle.inode not in facts.ids:
            text = (
                f"handle {handle.id} refers to the unknown inode {handle.inode}: the load"
                f" fails, even with guest-error"
            )
            yield Finding(ERROR, "handle-inode", text, where, at, SAVE_AGAIN)
        elif handle.inode in invalid:
            text = (
                f"handle {handle.id} is open on the Invalid inode {handle.inode}: at best every use gives EIO"
            )
            yield Finding(WARNING, "handle-invalid", text, where, at, "close the file before the migration")


def _flags(facts: Facts) -> Iterator[Finding]:
    for index, handle in enumerate(facts.blob.handles):
        where, at, flags = f"handles[{index}].flags", facts.handle_places[index].offset, handle.flags
        if flags & os.O_TRUNC:
            text = f"handle {handle.id} has O_TRUNC: virtiofsd empties the file when it loads the state"
            yield Finding(ERROR, "open-trunc", text, where, at, DO_NOT_LOAD)
        if flags & os.O_CREAT:
            text = (
                f"handle {handle.id} has O_CREAT, which a source must take off: the file would be made anew"
            )
            yield Finding(ERROR, "open-creat", text, where, at, DO_NOT_LOAD)
        if flags & os.O_EXCL:
            text = f"handle {handle.id} has O_EXCL, which a source must take off"
            yield Finding(WARNING, "open-excl", text, where, at, SAVE_AGAIN)
        if flags & os.O_APPEND:
            text = (
                f"handle {handle.id} has O_APPEND: writes go to the end of the file, whatever"
                f" offset the guest"
                " gives"
            )
            yield Finding(
                WARNING,
                "open-append",
                text,
                where,
                at,
                "virtiofsd keeps it of files that CREATE opened; vmsim does not need it",
            )
        if flags & os.O_PATH or flags & 0o20000000:
            text = f"handle {handle.id} has O_PATH or O_TMPFILE: it cannot be what the guest opened"
            yield Finding(ERROR, "open-flags", text, where, at, SAVE_AGAIN)
        if flags & os.O_ACCMODE == os.O_ACCMODE:
            text = f"handle {handle.id} has no access mode: vmsim refuses it"
            yield Finding(ERROR, "open-mode", text, where, at, SAVE_AGAIN)


def _root(facts: Facts) -> Iterator[Finding]:
    if facts.blob.inodes and ROOT_ID not in facts.ids:
        yield Finding(
            ERROR, "no-root", "the root is missing: nothing can be resolved", "inodes", 0, SAVE_AGAIN
        )


def _parents(facts: Facts) -> Iterator[Finding]:
    parents = {record.id: record.parent for record in facts.blob.inodes if record.location == PATH}
    good = facts.ids - parents.keys()
    reported: set[int] = set()
    for index, record in enumerate(facts.blob.inodes):
        if record.location != PATH:
            continue
        trail: list[int] = []
        on_trail: set[int] = set()
        here = record.id
        while here in parents and here not in good and here not in reported and here not in on_trail:
            trail.append(here)
            on_trail.add(here)
            here = parents[here]
        if here in good:
            good.update(trail)
            continue
        where, at = f"inodes[{index}].location.parent", _at(facts, index)
        if here in on_trail:
            text = f"the parents of inode {record.id} form a cycle: the load fails"
            yield Finding(ERROR, "parent-cycle", text, where, at, SAVE_AGAIN)
        elif here not in reported:
            text = f"inode {record.id} hangs on inode {here}, which is missing: the load fails"
            yield Finding(ERROR, "parent-missing", text, where, at, SAVE_AGAIN)
        reported.update(trail)


def _refcounts(facts: Facts) -> Iterator[Finding]:
    for index, record in enumerate(facts.blob.inodes):
        where, at = f"inodes[{index}].refcount", _at(facts, index)
        count = facts.children.get(record.id, 0)
        if record.refcount < count or (record.refcount == count and record.id == ROOT_ID):
            text = (
                f"inode {record.id} has refcount {record.refcount} and {count} children, of"
                f" which each takes one"
                " off at load: it underflows and the inode vanishes"
            )
            yield Finding(
                ERROR,
                "refcount-underflow",
                text,
                where,
                at,
                "a source has to count every migrated child in its parent's refcount",
            )
        elif record.refcount == 0:
            text = f"inode {record.id} has refcount 0: it is gone at load, or underflows at the first FORGET"
            yield Finding(ERROR, "refcount-zero", text, where, at, SAVE_AGAIN)
        elif record.id == ROOT_ID and record.refcount - count == 1:
            text = f"the root has one reference beside its {count} children; virtiofsd itself holds two"
            yield Finding(WARNING, "root-refcount", text, where, at, "a FORGET of the root would remove it")
        elif record.refcount > LAST_NEXT:
            text = f"inode {record.id} has refcount {record.refcount}: no guest looks up so often"
            yield Finding(WARNING, "refcount-large", text, where, at, SAVE_AGAIN)


def _next_ids(facts: Facts) -> Iterator[Finding]:
    blob = facts.blob
    for name, value, top, at in (
        ("next_inode", blob.next_inode, max(facts.ids, default=1), facts.next_inode_at),
        (
            "next_handle",
            blob.next_handle,
            max((h.id for h in blob.handles), default=-1),
            facts.next_handle_at,
        ),
    ):
        if value <= top:
            text = f"{name} is {value}, but {top} is in use: the destination gives it out a second time"
            yield Finding(ERROR, "next-id", text, name, at, SAVE_AGAIN)
        elif value > LAST_NEXT:
            yield Finding(
                ERROR, "next-id", f"{name} {value} leaves no room for new ids", name, at, SAVE_AGAIN
            )


def _mounts(facts: Facts) -> Iterator[Finding]:
    mounts = facts.blob.mount_paths
    for index, record in enumerate(facts.blob.inodes):
        if (
            record.location == FILE_HANDLE
            and record.handle is not None
            and record.handle.mnt_id not in mounts
        ):
            text = (
                f"inode {record.id} lies on mount {record.handle.mnt_id}, which has no path:"
                f" it cannot be opened"
            )
            yield Finding(
                ERROR,
                "mount-missing",
                text,
                f"inodes[{index}].location.handle",
                _at(facts, index),
                SAVE_AGAIN,
            )
    for mount, path in mounts.items():
        if path != b".":
            try:
                check_path(path, "mount_paths")
            except StreamError:
                text = f"the path {path[:80]!r} of mount {mount} is not beneath the shared directory"
                yield Finding(
                    ERROR, "unsafe-mount", text, "mount_paths", facts.mounts_place.offset, DO_NOT_LOAD
                )


def _agreement(facts: Facts) -> Iterator[Finding]:
    extension = facts.extension
    if extension is None:
        return
    try:
        check_agreement(facts.blob.negotiated, extension.negotiated)
    except StreamError as error:
        yield Finding(
            ERROR,
            "options-disagree",
            f"{error.message}: vmsim refuses the state",
            "negotiated_opts",
            facts.options_place.offset,
            SAVE_AGAIN,
        )
    handles = {handle.id for handle in facts.blob.handles}
    unknown = [
        *(f"inode {file.id}" for file in extension.anonymous if file.id not in facts.ids),
        *(f"inode {name.id}" for name in extension.raw_names if name.id not in facts.ids),
        *(f"inode {lock.inode}" for lock in extension.locks if lock.inode not in facts.ids),
        *(f"handle {entry.id}" for entry in extension.handles if entry.id not in handles),
        *(f"handle {lock.fh}" for lock in extension.flocks if lock.fh not in handles),
    ]
    for what in unknown:
        text = f"the extension speaks of {what}, which the state does not have: vmsim refuses it"
        yield Finding(ERROR, "extension-reference", text, "extension", facts.end, SAVE_AGAIN)


def _unused(facts: Facts) -> Iterator[Finding]:
    extension = facts.extension
    if extension is None:
        return
    locks = len(extension.locks) + len(extension.flocks)
    for count, what in (
        (locks, "locks"),
        (len(extension.anonymous), "unlinked files"),
        (len(extension.raw_names), "odd names"),
        (len(extension.waiting), "requests that wait for locks"),
    ):
        if count:
            text = f"{count} {what} are in vmsim's extension only: virtiofsd would lose them"
            yield Finding(NOTE, "extension-only", text, "extension", facts.end, "load it with vmsim")
    for loss in extension.losses:
        text = f"the source could not carry inode {loss.id}: {loss.reason}"
        yield Finding(WARNING, "loss", text, "extension.losses", facts.end, "see what the source reported")


def _general(facts: Facts) -> Iterator[Finding]:
    blob = facts.blob
    if blob.version == V1:
        yield Finding(
            NOTE,
            "state-v1",
            "V1 of the state: virtiofsd since 1.13 writes V2",
            "version",
            0,
            "it loads all the same",
        )
    if not blob.inodes and not blob.handles:
        yield Finding(
            NOTE,
            "no-session",
            "no session: it was saved before the guest's FUSE INIT, or after DESTROY",
            "inodes",
            0,
            "right if the guest had not mounted the file system",
        )
