"""What ``vmsim inspect`` knows of virtio-fs: its section, its configuration space, and a back-end's state.

The state is read element by element, so that each has its place, and as far as it goes: what is wrong is a
finding. :mod:`.state.lint` then looks at what was read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from devices.virtio_fs import parked
from devices.virtio_fs.config import (
    FS_CONFIG,
    HIPRIO_QUEUE,
    NOTIFICATION_QUEUE,
    QUEUE_SIZE_MAX,
    TAG_BYTES,
    VIRTIO_FS_F_NOTIFICATION,
)
from devices.virtio_fs.section import SUBSECTION, VMSD_NAME
from devices.virtio_fs.state import extension as ext
from devices.virtio_fs.state.lint import Facts, Held, lint
from devices.virtio_fs.state.postcard import U64, Reader
from devices.virtio_fs.state.records import (
    FILE_HANDLE,
    FULL_PATH,
    HANDLE,
    HANDLES,
    INODE,
    INODES,
    LOCATION_NAMES,
    MOUNT_PATHS,
    NEGOTIATED,
    PATH,
    ROOT,
    V1,
    V2,
    FileHandle,
    InodeRecord,
    StateBlob,
)
from vmsim.errors import StreamError
from vmsim.fuse.abi.init_flags import flag_names
from vmsim.limits import PATH_MAX, VIRTIO_QUEUE_MAX
from vmsim.virtio.constants import (
    F_ACCESS_PLATFORM,
    F_ANY_LAYOUT,
    F_NOTIFY_ON_EMPTY,
    RING_FEATURES,
)
from vmsim.virtio.rings import RingState
from vmsim.wire.tree import Finding, Node, Piece, Severity

INODES_MAX: Final = 1 << 20
"""Inodes, and handles, that are taken apart; of a state with more of them only so many are shown."""
PATHS_CHARACTERS: Final = 64 << 20
"""What the paths of one state may have altogether; after that they are shortened."""
ACCESS: Final = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
FLAG_NAMES: Final = (
    (0o40000000 >> 1 | os.O_DIRECTORY, "O_TMPFILE"), (os.O_SYNC, "O_SYNC"), (os.O_APPEND, "O_APPEND"),
    (os.O_CREAT, "O_CREAT"), (os.O_EXCL, "O_EXCL"), (os.O_NOCTTY, "O_NOCTTY"), (os.O_TRUNC, "O_TRUNC"),
    (os.O_NONBLOCK, "O_NONBLOCK"), (os.O_DSYNC, "O_DSYNC"), (os.O_ASYNC, "O_ASYNC"),
    (os.O_DIRECT, "O_DIRECT"),
    (0o100000, "O_LARGEFILE"), (os.O_DIRECTORY, "O_DIRECTORY"), (os.O_NOFOLLOW, "O_NOFOLLOW"),
    (os.O_NOATIME, "O_NOATIME"), (os.O_CLOEXEC, "O_CLOEXEC"), (os.O_PATH, "O_PATH"),
)  # fmt: skip
"""Composed flags before their parts."""


def open_flags(flags: int) -> list[str]:
    """Open flags by name, the access mode first; what has no name in hexadecimal."""
    names = [ACCESS.get(flags & os.O_ACCMODE, "access mode 3")]
    rest = flags & ~os.O_ACCMODE
    for mask, name in FLAG_NAMES:
        if rest & mask == mask:
            names.append(name)
            rest &= ~mask
    return [*names, f"{rest:#x}"] if rest else names


class FsInspection:
    """Implements ``DeviceInspection``."""

    vmsd_name = VMSD_NAME
    state_subsection = SUBSECTION
    device_features = (
        RING_FEATURES | VIRTIO_FS_F_NOTIFICATION | F_NOTIFY_ON_EMPTY | F_ANY_LAYOUT | F_ACCESS_PLATFORM
    )
    feature_names: Mapping[int, str] = {0: "FS_NOTIFICATION"}
    queue_size_max = QUEUE_SIZE_MAX

    def queue_name(self, index: int, features: int) -> str:
        """hiprio, notification if it was accepted, requests."""
        if index == HIPRIO_QUEUE:
            return "hiprio"
        notification = features & VIRTIO_FS_F_NOTIFICATION
        return "notification" if notification and index == NOTIFICATION_QUEUE else "requests"

    def config(self, data: bytes) -> list[Node]:
        """Tag and number of request queues."""
        config = FS_CONFIG.unpack(data.ljust(FS_CONFIG.size, b"\0"))
        tag = config.tag.rstrip(b"\0").decode("utf-8", "backslashreplace")
        nodes = [Node("tag", tag, repr(tag)), Node("num_request_queues", config.num_request_queues)]
        if len(data) >= FS_CONFIG.size:
            nodes.append(Node("notify_buf_size", config.notify_buf_size))
        return nodes

    def queues(self, config: bytes, features: int) -> int:
        """hiprio, notification if it was accepted, and as many request queues as the configuration says."""
        if len(config) < TAG_BYTES + 4 or not any(config):
            return 0
        requests = FS_CONFIG.unpack(config.ljust(FS_CONFIG.size, b"\0")).num_request_queues
        return 1 + (features & VIRTIO_FS_F_NOTIFICATION) + requests

    def looks_like_state(self, data: bytes) -> bool:
        """V1 or V2, and a first inode (or none) as they come."""
        if len(data) < 2 or data[0] not in (V1, V2):
            return False
        reader = Reader(data, 1)
        try:
            if U64.decode(reader, "inodes"):
                INODE.decode(reader, "inodes[0]")
        except StreamError:
            return len(data) < 64 and data[2:4] != b"\0\0"
        return True

    def state(self, data: bytes) -> tuple[Node, list[Finding]]:
        """Inodes, handles, options, mounts, our extension, parked requests; and the findings about them."""
        return _StateReader(data).read()


class _StateReader:
    """Reads one state; ``facts`` is what was understood."""

    def __init__(self, data: bytes) -> None:
        self.findings: list[Finding] = []
        self.root = Node("state", offset=0, size=len(data))
        self.facts = Facts(StateBlob())
        self.whole = len(data)
        self.rings: dict[int, RingState] = {}
        try:
            self.data, self.rings = parked.split(data, VIRTIO_QUEUE_MAX)
        except StreamError as error:
            self.data = data
            self._wrong(
                "parked-rings", error, "the parked requests cannot be read: a destination refuses the state"
            )
        self.reader = Reader(self.data)

    def read(self) -> tuple[Node, list[Finding]]:
        """Everything."""
        if not self.data:
            self.findings.append(Finding(
                Severity.WARNING, "empty-state", "the state is empty: virtiofsd refuses it", "state", 0,
                "right only if the back-end keeps its state to itself (external migration)",
            ))  # fmt: skip
            return self.root, self.findings
        try:
            self.facts.complete = self._blob()
        except StreamError as error:
            self._wrong("state-damaged", error, "the state ends here, a destination refuses it")
        if self.facts.complete:
            self._extension()
        if self.rings:
            self._parked()
        self.findings += lint(self.facts)
        self._tree()
        return self.root, self.findings

    def _wrong(self, code: str, error: StreamError, consequence: str) -> None:
        self.findings.append(Finding(
            Severity.ERROR, code, f"{error.message}: {consequence}", error.field or "state",
            max(error.offset, 0), error.hint or "the state is cut off, or damaged",
        ))  # fmt: skip

    def _blob(self) -> bool:
        """The blob of virtiofsd, element by element; False if it has more than we take apart."""
        reader, blob, held = self.reader, self.facts.blob, self.facts
        version = reader.varint(32, "version")
        if version > V2:
            raise StreamError(
                f"unknown variant {version}", offset=0, field="version", hint="only V1 and V2 are known"
            )
        blob.version = version
        self._piece("version", 0, f"V{version + 1}")
        start = reader.position
        count = INODES.count(reader, "inodes")
        self._piece("inodes.count", start, str(count))
        if count > INODES_MAX:
            self._too_many(count, "inodes", start)
        for index in range(min(count, INODES_MAX)):
            start = reader.position
            blob.inodes.append(INODE.decode(reader, f"inodes[{index}]"))
            held.inode_places.append(Held(start, reader.position - start))
        if count > INODES_MAX:
            return False
        self._number("next_inode")
        start = reader.position
        count = HANDLES.count(reader, "handles")
        self._piece("handles.count", start, str(count))
        if count > INODES_MAX:
            self._too_many(count, "handles", start)
        for index in range(min(count, INODES_MAX)):
            start = reader.position
            blob.handles.append(HANDLE.decode(reader, f"handles[{index}]"))
            held.handle_places.append(Held(start, reader.position - start))
        if count > INODES_MAX:
            return False
        self._number("next_handle")
        start = reader.position
        blob.negotiated = NEGOTIATED.decode(reader, "negotiated_opts")
        self._piece("negotiated_opts", start, ", ".join(_yes(blob.negotiated)) or "none")
        held.options_place = Held(start, reader.position - start)
        if version == V2:
            start = reader.position
            blob.mount_paths = MOUNT_PATHS.decode(reader, "mount_paths")
            self._piece("mount_paths", start, f"{len(blob.mount_paths)} mounts")
            held.mounts_place = Held(start, reader.position - start)
        return True

    def _too_many(self, count: int, what: str, place: int) -> None:
        self.findings.append(Finding(
            Severity.NOTE, "state-large",
            f"{count} {what}, of which the first {INODES_MAX} are looked at; nothing is said of what follows",
            what, place, "load it to see whether the rest is sound",
        ))  # fmt: skip

    def _number(self, name: str) -> None:
        start = self.reader.position
        value = U64.decode(self.reader, name)
        setattr(self.facts.blob, name, value)
        setattr(self.facts, f"{name}_at", start)
        self._piece(name, start, str(value))

    def _piece(self, name: str, start: int, value: str) -> None:
        self.root.pieces.append(Piece(name, start, self.reader.position - start, value))

    def _extension(self) -> None:
        end = self.reader.position
        self.facts.end = end
        try:
            self.facts.extension = ext.decode(self.data, end)
        except StreamError as error:
            self._wrong("extension", error, "vmsim refuses the state; virtiofsd ignores this part")
            return
        rest = len(self.data) - end
        if rest and self.facts.extension is None:
            self.findings.append(Finding(
                Severity.WARNING, "trailing-state", f"{rest} bytes follow the state that nobody knows:"
                " virtiofsd ignores them", "state", end, "the state is damaged, or of an unknown back-end",
            ))  # fmt: skip
        if rest:
            self.root.pieces.append(Piece("extension" if self.facts.extension else "trailing", end, rest, ""))

    # -- as a tree

    def _tree(self) -> None:
        root, blob, facts = self.root, self.facts.blob, self.facts
        root.add("format", f"virtiofsd V{blob.version + 1}", "", 0, 1)
        inodes = root.add("inodes", {"count": len(blob.inodes)}, str(len(blob.inodes)))
        inodes.long = True
        paths = _Paths(blob.inodes)
        for record, place in zip(blob.inodes, facts.inode_places, strict=False):
            value, text = _inode(record, paths, facts)
            inodes.children.append(Node(str(record.id), value, text, place.offset, place.size))
        inodes.distinct()
        root.add("next_inode", blob.next_inode, "", facts.next_inode_at)
        handles = root.add("handles", {"count": len(blob.handles)}, str(len(blob.handles)))
        handles.long = True
        for handle, place in zip(blob.handles, facts.handle_places, strict=False):
            names = open_flags(handle.flags)
            path = paths.of(handle.inode)
            fields = {"inode": handle.inode, "path": path, "flags": handle.flags, "names": names}
            text = f"inode {handle.inode} {path}, {'|'.join(names)}"
            handles.children.append(Node(str(handle.id), fields, text, place.offset, place.size))
        handles.distinct()
        root.add("next_handle", blob.next_handle, "", facts.next_handle_at)
        options = {name: getattr(blob.negotiated, name) for name in blob.negotiated.__struct_fields__}
        root.add("negotiated", options, ", ".join(_yes(blob.negotiated)) or "none", *facts.options_place)
        mounts = root.add("mount_paths", None, "" if blob.mount_paths else "none", *facts.mounts_place)
        for mount, mount_path in blob.mount_paths.items():
            mounts.add(str(mount), _name(mount_path))
        if facts.extension is not None:
            root.children.append(_extension_tree(facts.extension, facts.end))

    def _parked(self) -> None:
        start = len(self.data)
        node = self.root.add("parked_requests", None, "requests that wait while the device migrates", start)
        node.size = self.whole - start
        self.root.pieces.append(Piece("parked requests", start, self.whole - start, ""))
        for index, ring in self.rings.items():
            child = node.add(f"ring {index}", None, f"{len(ring.in_flight)} in flight")
            for name in ("next_avail", "next_used", "avail_wrap", "used_wrap"):
                child.add(name, getattr(ring, name))
            if ring.completed:
                done = [list(pair) for pair in ring.completed]
                child.add("completed", done, f"{len(done)} wait for older ones")
            for chain in ring.in_flight:
                text = f"{chain.count} entries, {len(chain.descriptors)} descriptors"
                child.add(f"head {chain.head}", [list(part) for part in chain.descriptors], text)
            child.distinct()


class _Paths:
    """Full paths of inodes: cached parents, and no deeper than a path may be."""

    def __init__(self, inodes: list[InodeRecord]) -> None:
        self._records = {record.id: record for record in inodes}
        self._known: dict[int, str] = {}
        self._budget = PATHS_CHARACTERS

    def of(self, node_id: int) -> str:
        """The path, or in angle brackets why there is none."""
        chain: list[InodeRecord] = []
        seen: set[int] = set()
        here = node_id
        while True:
            if here in self._known:
                base = self._known[here]
                break
            record = self._records.get(here)
            if record is None:
                base = f"<inode {here} is missing>"
                break
            if here in seen:
                base = "<parents form a cycle>"
                break
            if record.location != PATH:
                base = _base(record)
                self._known[here] = base
                break
            seen.add(here)
            chain.append(record)
            here = record.parent
        for record in reversed(chain):
            base = f"{base.rstrip('/')}/{_name(record.name)}"
            # Paths cost more than the names they are made of: a long chain of parents must not fill memory.
            self._budget -= len(base)
            if len(base) > PATH_MAX or self._budget < 0:
                base = f"…/{_name(record.name)}"
            self._known[record.id] = base
        return base


def _base(record: InodeRecord) -> str:
    if record.location == ROOT:
        return "/"
    if record.location == FULL_PATH:
        return "/" + _name(record.name)
    return "<by file handle>" if record.location == FILE_HANDLE else "<invalid>"


def _name(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _handle(handle: FileHandle | None) -> dict[str, Any] | None:
    if handle is None:
        return None
    return {"mnt_id": handle.mnt_id, "type": handle.handle_type, "handle": handle.handle.hex()}


def _inode(record: InodeRecord, paths: _Paths, facts: Facts) -> tuple[dict[str, Any], str]:
    path = paths.of(record.id)
    children = facts.children.get(record.id, 0)
    held = record.refcount - children
    value: dict[str, Any] = {
        "path": path, "location": LOCATION_NAMES[record.location], "refcount": record.refcount,
        "children": children, "lookups": held,
    }  # fmt: skip
    made = f"{held} lookups + {children} children"
    if record.location == ROOT:
        # The session's own two references are in the lookups of the root (reference section 1.2).
        value["base"] = min(2, max(held, 0))
        value["lookups"] = held - value["base"]
        made = f"base {value['base']} + {value['lookups']} lookups + {children} children"
    if record.location == PATH:
        value["parent"], value["name"] = record.parent, _name(record.name)
    for key, handle in (("handle", record.handle), ("verify", record.file_handle)):
        if handle is not None:
            value[key] = _handle(handle)
    return value, f"{path}, refcount {record.refcount} = {made}" + (
        f", mount {record.handle.mnt_id}" if record.handle else ""
    )


def _yes(options: Any) -> list[str]:
    return [name for name in options.__struct_fields__ if getattr(options, name)]


def _extension_tree(extension: ext.Extension, offset: int) -> Node:
    """Our extension: the INIT result by name, effective flags, locks, contents of unlinked files."""
    node = Node("extension", {"version": ext.VERSION}, f"vmsim extension, version {ext.VERSION}", offset)
    init = node.add("init", None, "INIT result" if extension.negotiated.initialized else "no session")
    for name, value in extension.negotiated._asdict().items():
        text = " ".join(flag_names(value)) if name == "flags" else ""
        init.add(
            name, list(value) if isinstance(value, tuple) else value, f"{value:#x} {text}" if text else ""
        )
    info = extension.info
    node.add("collected", {"mode": info.mode, "verify_handles": info.verify_handles,
                           "confirm_paths": info.confirm_paths}, info.mode)  # fmt: skip
    rows: tuple[tuple[str, list[Any]], ...] = (
        ("handles", [(h.id, {"effective": open_flags(h.effective_flags), "guest": open_flags(h.guest_flags)})
                     for h in extension.handles]),
        ("locks", [(k.inode, {"owner": k.owner, "start": k.start, "end": k.end,
                              "kind": ("read", "write")[k.kind],
                              "pid": k.pid}) for k in extension.locks]),
        ("flocks", [(k.fh, {"kind": ("", "shared", "exclusive")[k.kind]}) for k in extension.flocks]),
        ("unlinked", [(f.id, {"mode": f"{f.mode:#o}", "uid": f.uid, "gid": f.gid, "size": f.size,
                              "bytes": sum(len(data) for _, data in f.extents)})
                      for f in extension.anonymous]),
        ("told", [(t.id, {"ino": t.ino, "ctime_ns": t.ctime_ns}) for t in extension.told]),
        ("raw_names", [(r.id, {"parent": r.parent, "name": _name(r.name)}) for r in extension.raw_names]),
        ("losses", [(loss.id, {"reason": loss.reason}) for loss in extension.losses]),
    )  # fmt: skip
    for name, entries in rows:
        if entries:
            group = node.add(name, {"count": len(entries)}, str(len(entries)))
            group.long = True
            for key, value in entries:
                group.add(str(key), value)
            group.distinct()
    if extension.waiting:
        node.add("waiting", list(extension.waiting), f"{len(extension.waiting)} requests wait for a lock")
    return node


INSPECTION: Final = FsInspection()
