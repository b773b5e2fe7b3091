"""Everything that a guest kernel keeps in its RAM besides pages: plain records, live and saved in one.

The records here *are* the kernel's live state; saving encodes them and restoring decodes and checks them
(:mod:`vmsim.guest.kernel.snapshot`). What lies in guest memory itself (rings, message buffers, page cache and
dentry cache tables) is not repeated here; only its addresses are.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vmsim.guest.config import GuestConfig

STATE_VERSION: Final = 1

QUEUED: Final = 0
"""A request that waits for room in its ring."""
IN_FLIGHT: Final = 1
"""A request that the device has."""
DONE: Final = 2
"""A request whose reply has come and waits for its caller."""

Segments = list[tuple[int, int]]
"""Guest memory as (guest-physical address, size in bytes) pairs."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One FUSE request from submission until its caller takes the reply.

    ``message`` is header and arguments (emptied once it lies in a slot), ``reads`` the payload that follows
    it; ``out_bytes`` is the room for reply arguments (-1: no reply at all) and ``writes`` the payload after
    them. ``error`` is a positive errno, ``reply`` the arguments, ``written`` the bytes after the out header.
    ``spill`` is a buffer for a message that is larger than a slot, ``owned`` the buffers that are released
    with an orphan, whose caller has gone away.
    """

    unique: int
    opcode: int
    nodeid: int
    pid: int
    queue: int
    message: bytes = b""
    out_bytes: int = 0
    reads: Segments = []
    writes: Segments = []
    owned: Segments = []
    status: int = QUEUED
    slot: int = -1
    error: int = 0
    reply: bytes = b""
    written: int = 0
    spill: Segments = []
    orphan: bool = False
    interrupted: bool = False


class QueueState(msgspec.Struct, forbid_unknown_fields=True):
    """One virtqueue: where its parts lie, its driver-side ring state, its slots and what waits for room."""

    index: int
    size: int
    desc: int
    driver: int
    device: int
    slots_gpa: int
    slot_count: int
    ring: bytes = b""
    free_slots: list[int] = []
    in_flight: dict[int, int] = {}
    backlog: list[int] = []


class Attr(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A file's attributes: the fields of ``fuse_attr`` in its order."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Node(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One inode that the server knows us to hold ``nlookup`` references to; ``refs`` are our own users.

    ``parent`` and ``name`` are a directory's place (a directory has exactly one); other kinds keep 0.
    ``attr`` is valid until ``attr_expiry_ns``; a reply that was asked for before ``attr_version`` is older
    than what we know. ``dirty_size`` and ``dirty_mtime`` say that the guest, not the server, owns these
    (writeback); ``error`` is a write-out failure that nobody has heard of yet (AS_EIO, AS_ENOSPC of Linux),
    which the next close reports, unless an fsync was first. While anybody is ``truncating`` the file, its
    pages are not written out. ``acl`` is the access ACL as its attribute has it
    (empty: none), good until ``acl_expiry_ns``.
    """

    id: int
    generation: int
    attr: Attr
    nlookup: int = 0
    refs: int = 0
    parent: int = 0
    name: bytes = b""
    detached: bool = False
    attr_expiry_ns: int = 0
    attr_version: int = 0
    dirty_size: bool = False
    dirty_mtime: bool = False
    error: int = 0
    pages_epoch: int = 0
    truncating: int = 0
    device_number: int = 0
    acl: bytes = b""
    acl_expiry_ns: int = 0


class Submount(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A file system that the server has mounted below its own: its device number, its root's node id."""

    device_number: int
    nodeid: int = 0


class OpenFile(msgspec.Struct, forbid_unknown_fields=True):
    """One open file description; ``refs`` counts the descriptors of all processes that share it.

    ``flags`` are the guest's open flags, ``open_flags`` the server's FOPEN_* bits; ``fh`` is None for O_PATH.
    ``next_page`` is where a sequential reader would go on, ``error`` a write-out failure that an fsync of
    this description has not reported yet: each hears of it once (errseq_t of Linux).
    """

    id: int
    nodeid: int
    fh: int | None
    flags: int
    open_flags: int = 0
    offset: int = 0
    refs: int = 1
    directory: bool = False
    flocked: bool = False
    next_page: int = 0
    readdir_plus: bool = True
    error: int = 0


class Process(msgspec.Struct, forbid_unknown_fields=True):
    """One guest process: credentials, descriptors, working directory, umask.

    ``uid`` and ``gid`` are the effective ids, which count for files; ``real`` and ``saved`` are pairs of user
    and group, None where they are the same. ``capabilities`` (effective) and ``permitted`` are bits by
    number; None: all of them for user 0 and none for anybody else.
    """

    pid: int
    cwd: int
    uid: int = 0
    gid: int = 0
    groups: list[int] = []
    umask: int = 0o022
    fds: dict[int, int] = {}
    real: tuple[int, int] | None = None
    saved: tuple[int, int] | None = None
    capabilities: int | None = None
    permitted: int | None = None


class LocalLock(msgspec.Struct, forbid_unknown_fields=True):
    """One guest-local lock, used when the server does not take part in locking; ``end`` is inclusive."""

    nodeid: int
    owner: int
    pid: int
    kind: int
    start: int
    end: int
    flock: bool = False


class Session(msgspec.Struct, forbid_unknown_fields=True):
    """What FUSE_INIT negotiated; ``flags`` has flags2 in its upper half."""

    major: int = 0
    minor: int = 0
    flags: int = 0
    max_readahead: int = 0
    max_write: int = 4096
    max_pages: int = 32
    time_gran: int = 1
    max_background: int = 0


class AllocatorState(msgspec.Struct, forbid_unknown_fields=True):
    """The heap: ranges that it manages and the free runs in them, both as (address, bytes), sorted."""

    ranges: Segments
    free: Segments
    quick: dict[int, list[int]] = {}


class CacheState(msgspec.Struct, forbid_unknown_fields=True):
    """Where a record table lies in guest memory; 0 entries: there is none.

    ``used``: of dentries, how many records from the first on are in use; -1: anywhere, as in older states.
    """

    table_gpa: int = 0
    entries: int = 0
    data_gpa: int = 0
    used: int = -1


class KernelState(msgspec.Struct, forbid_unknown_fields=True):
    """The whole guest kernel; a state that travels has its nodes in ``groups`` (see ``node_groups.py``)."""

    version: int
    config: GuestConfig
    allocator: AllocatorState
    features: int = 0
    tag: bytes = b""
    device_queues: int = 0
    booted: bool = False
    broken: bool = False
    queues: list[QueueState] = []
    session: Session = msgspec.field(default_factory=Session)
    next_unique: int = 2
    attr_version: int = 1
    names_version: int = 1
    requests: dict[int, Request] = {}
    forgets: list[tuple[int, int]] = []
    nodes: dict[int, Node] = {}
    groups: list[bytes] = []
    files: dict[int, OpenFile] = {}
    next_file: int = 1
    processes: dict[int, Process] = {}
    local_locks: list[LocalLock] = []
    interrupts: dict[int, int] = {}
    missing: list[int] = []
    pages: CacheState = msgspec.field(default_factory=CacheState)
    dentries: CacheState = msgspec.field(default_factory=CacheState)
    submounts: dict[tuple[int, int, bytes], Submount] = {}
    last_device: int = 0
