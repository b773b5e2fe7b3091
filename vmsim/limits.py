"""Every bound on what a guest, peer or stream may ask for, in one table."""

from __future__ import annotations

from typing import Final

QUEUE_SIZE_MAX: Final = 32768
"""Entries of one virtqueue (virtio 1.3 section 2.7; packed: section 2.8.10.1)."""

CHAIN_BYTES_MAX: Final = 1 << 32
"""Bytes of one descriptor chain (virtio 1.3 section 2.7.4)."""

VIRTIO_QUEUE_MAX: Final = 1024
"""Queues of one device in a migration stream (VIRTIO_QUEUE_MAX of QEMU)."""

FUSE_MAX_WRITE: Final = 1 << 20
"""Bytes of one READ or WRITE that the FUSE server offers."""

FUSE_REQUEST_OVERHEAD: Final = 4096
"""Bytes of headers and arguments allowed on top of FUSE_MAX_WRITE."""

FUSE_COPY_MAX: Final = 8 << 20
"""Bytes of one COPY_FILE_RANGE; the reply says how far it came, as POSIX lets it."""

TURN_NS: Final = 20_000_000
"""How long one ring is served before messages, other rings and whatever else is ready get their turn."""

FUSE_REPLY_BUFFER_MAX: Final = 1 << 20
"""Largest READDIR, GETXATTR or LISTXATTR buffer; larger asks get ENOMEM."""

WORKERS_MAX: Final = 32
"""Host calls that may sleep at a time, each on a thread of its own; the others wait for their turn."""

WORKERS_PER_KEY: Final = 8
"""Those of one mount, so that a dead one leaves threads to the others."""

ASIDE_MAX: Final = 4096
"""Host calls that wait or sleep altogether; beyond that EAGAIN."""

SLOW_CALL_NS: Final = 1_000_000_000
"""How long a call that is not a request's is waited for on a mount that may hang; then ETIMEDOUT."""

DRAIN_NS: Final = 5_000_000_000
"""How long the requests that sleep in the host are waited for when their ring is stopped; then it goes on."""

FUSE_ALLOCATE_MAX: Final = 64 << 20
"""Bytes of a FALLOCATE that are allocated without leaving the loop; a longer one runs aside."""

FUSE_DIRENTS_MAX: Final = 4096
"""Entries of one READDIR; the client asks again for the rest."""

FUSE_DIRENTS_PLUS_MAX: Final = 512
"""Entries of one READDIRPLUS, each of which has to be looked up."""

NAME_MAX: Final = 255
"""Bytes of one path component."""

PATH_MAX: Final = 4096
"""Bytes of a symlink target."""

XATTR_SIZE_MAX: Final = 65536
"""Bytes of one extended attribute's value (Linux)."""

SUBMOUNTS_MAX: Final = 4096
"""Mounts below the share whose device numbers a guest remembers."""

STATE_BLOB_MAX: Final = 1 << 30
"""Bytes of a back-end state that a destination accepts."""

STATE_INODES_MAX: Final = 16_000_000
"""Inodes that a guest may know at a time (ENFILE), and in one back-end state.

Each takes 290 to 370 bytes of memory and its name (one that is lost 190), so all of them 6 GB: that, not the
bytes of the state, is what loading takes. While a state is read each needs another 70 to 150 bytes.
"""

STATE_HANDLES_MAX: Final = 1 << 20
"""Open files in one back-end state; a guest's are bounded by the descriptors of the process (ENFILE).

Each takes about 200 bytes of memory, and another 180 while a state is read.
"""

STATE_MOUNT_FDS: Final = 64
"""Descriptors of mounts that are held at a time while a state with file handles is loaded."""

DIR_ENTRIES_MAX: Final = 1 << 16
"""Entries of directories read ahead for READDIR altogether; the oldest are read again when wanted."""

MOUNT_FDS_MAX: Final = 1024
"""Mounts below a share that keep a descriptor for file handles; files of more are found by name alone."""

STATE_UNLINKED_MAX: Final = 1 << 17
"""Unlinked files that travel inside one back-end state; each holds a descriptor of the destination."""

XATTRS_MAX: Final = 8192
"""Extended attributes of one unlinked file: Linux lists 64 KiB of names.

While a state is read each takes 190 bytes and itself, so that 64 KiB of names are 1.5 MB for each file.
"""

STATE_EXTENTS_MAX: Final = 65536
"""Pieces of data of one unlinked file that travels: as many as UNLINKED_CONTENT_MAX has KiB.

While a state is read each takes 100 bytes and itself.
"""

STATE_PARKED_MAX: Final = 16 << 20
"""Bytes that the requests which wait take in a back-end state: 2 KiB for each of LOCK_WAITERS_MAX.

In memory they take ten times as many until their rings run.
"""

REPORT_LINES_MAX: Final = 10_000
"""Losses, and notes, that the report of a load tells one by one."""

UNLINKED_CONTENT_MAX: Final = 64 << 20
"""Bytes of unlinked-but-open files that travel inside the back-end state."""

STREAM_STRING_MAX: Final = 255
"""Bytes of an idstr in a migration stream."""

VMDESC_MAX: Final = 10 << 20
"""Bytes of the JSON description after a migration stream."""

EARLY_STATE_MAX: Final = 256 << 20
"""Bytes of state that a destination takes before the source stops, of the guest and of each device."""

EARLY_PIECE_MAX: Final = 8 << 20
"""Bytes of one piece of that."""

GUEST_STATE_MAX: Final = 256 << 20
"""Bytes of the guest's own (kernel) state in a stream."""

MEMORY_REGIONS_MAX: Final = 509
"""Memory slots that a back-end accepts."""

FUSE_INTERRUPTS_MAX: Final = 64
"""INTERRUPTs that a FUSE session remembers because their request has not come yet."""

LOCK_RANGES_MAX: Final = 16384
"""Byte ranges that a guest may hold locked altogether; beyond that ENOLCK. A state with more is refused.

Of each file the kernel looks at all for every one that is taken, so that taking them again after a
migration may cost their square: 16384 on one file take 5 to 20 s if their kinds or owners alternate. Those
of one owner and kind are taken together, which costs their number (0.4 s).
"""

LOCK_WAITERS_MAX: Final = 8192
"""Requests that may wait for locks; beyond that ENOLCK. A state with more is refused."""

LOCK_TRIES: Final = 64
"""Wishes for a lock that are tried at a time when one comes free; the others' turn comes soon after."""

DEADLOCK_LOCKS_MAX: Final = 256
"""Locks that are looked at for a circle of owners who wait for each other; beyond that there is none."""
