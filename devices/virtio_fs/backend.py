"""The back-end half of the virtio-fs device: a FUSE session over a directory, behind vhost rings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_WRLCK, LOCK_EX
from itertools import islice

from devices.virtio_fs import parked
from devices.virtio_fs.config import NOTIFICATION_QUEUE, VIRTIO_FS_F_NOTIFICATION, FsDeviceOptions
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.aside import Pool
from devices.virtio_fs.passthrough.fs import PassthroughFs
from devices.virtio_fs.passthrough.host_calls import (
    ATIME,
    ATIME_NS,
    BLOCKS,
    CTIME,
    CTIME_NS,
    NLINK,
    HostAttr,
    HostFs,
)
from devices.virtio_fs.passthrough.lock_table import END
from devices.virtio_fs.passthrough.slow import LONG, SEEN
from devices.virtio_fs.state import early
from devices.virtio_fs.state.collect import StateCollector
from devices.virtio_fs.state.early_inodes import EarlyInodes
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.preflight import preflight
from devices.virtio_fs.state.restore import RestoreReport, restore_state
from vmsim.errors import InternalFault, MigrationBlocked
from vmsim.fuse.opcodes import BY_NUMBER
from vmsim.fuse.session import Session
from vmsim.limits import LOCK_TRIES
from vmsim.vhost.device_type import Burden, PreflightFinding
from vmsim.virtio.chain import Chain
from vmsim.virtio.constants import RING_FEATURES
from vmsim.virtio.rings import RingState

BY_ATTEMPT = {ATIME, ATIME_NS, CTIME, CTIME_NS}
"""What a destination that fails may leave changed of the share's root; anything else was somebody else."""

Complete = Callable[[Chain, int], None]

PIECE = 1 << 20
"""Bytes of the state that are handed over at a time."""

TRIES_BESIDE = 2
"""Waits that are tried again beside each request, while third parties hold some up."""

HANDLES_LOOKED_AT = 8192
"""For a forecast: each costs a call of the host."""

EARLY_STEP = 256
"""Inodes that are collected at a time while a migration waits for that."""

STEP = 32
"""Inodes that are collected beside each request while a migration runs."""

RETRIES = 4
"""Requests that wait for somebody outside which are tried again at a time: more would keep others waiting."""


class Slot:
    """The request that is being served: called with the bytes written if its reply comes later."""

    __slots__ = ("backend", "chain", "complete", "ring", "unique")

    backend: VirtioFsBackend
    ring: int
    chain: Chain
    complete: Complete
    unique: int
    """Of the request, once it waits."""

    def __init__(self, backend: VirtioFsBackend) -> None:
        self.backend = backend

    def __call__(self, written: int) -> None:
        """The reply is written."""
        self.backend.open_slots[self.ring].pop(self, None)
        self.complete(self.chain, written)


class VirtioFsBackend:
    """Implements ``BackendDevice``: serves the directory ``share`` of ``host``.

    ``notification``: offer VIRTIO_FS_F_NOTIFICATION; its buffers are kept, nothing is ever sent. With ``tag``
    the back-end can be asked for the device's configuration space, as virtiofsd with --tag. With ``pool``
    what may sleep for long in the host is called there, see :mod:`.passthrough.slow`. ``report``
    is that of the last state that was loaded. UsageError or OSError as from ``PassthroughFs``.
    """

    def __init__(
        self, host: HostFs, share: str | bytes, options: FsOptions | None = None,
        state_options: StateOptions | None = None, *, request_queues: int = 1, notification: bool = False,
        tag: str = "", pool: Pool | None = None,
    ) -> None:  # fmt: skip
        self.options = options if options is not None else FsOptions()
        self.state_options = state_options if state_options is not None else StateOptions()
        self.virtio_features = RING_FEATURES | (VIRTIO_FS_F_NOTIFICATION if notification else 0)
        self.hiprio_count = 1
        self.queue_count = 1 + request_queues + notification
        self.config_space = b""
        if tag:
            device = FsDeviceOptions(tag, num_request_queues=request_queues, notification=notification)
            self.config_space = device.config_space()
        self.fs = PassthroughFs(host, share, self.options)
        self.session = Session(self.fs, self.options.init_options())
        self.session.on_fault = _give_up
        self.fs.on_waits = self._be_busy
        if pool is not None:
            self.session.serve_aside(self.fs, LONG.keys() - SEEN)
            self.fs.use_pool(pool, lambda: self.session.serve_aside(self.fs, BY_NUMBER))
        self.collector = StateCollector(self.fs, self.session, self.state_options)
        self.report: RestoreReport | None = None
        self.open_slots: list[dict[Slot, None]] = [{} for _ in range(self.queue_count)]
        self._slot: Slot | None = None
        self._serve = self.session.handle
        self._kept: dict[int, RingState] = {}
        self._has_notification = False
        self._locks_suspended = False
        """The host's locks are free for the destination."""
        self._locks_wanted = False
        """They were, and are to be taken back."""
        self._collecting = False
        self._early: EarlyInodes | None = None
        """What was found of a state that is still to come."""
        self._saved = b""
        """A digest of the state that was saved last, while the session is what it says."""
        self._root_then: HostAttr = ()
        """The share's root when a state was saved whose load leaves traces there."""
        self._busy = False
        """Whether something beside the plain serving of requests is going on."""

    def close(self) -> None:
        """Give back all descriptors, and all views of guest memory. May be called twice."""
        self._slot = None
        self.collector.stop()
        self.session.reset()
        self.open_slots = [{} for _ in self.open_slots]
        self.fs.close()

    # -- what it tells ---------------------------------------------------------------------------

    def burden(self) -> Burden:
        """Open files, locks, and the contents that travel as their files have no name any more."""
        fs = self.fs
        unlinked: dict[int, int] = {}
        if self.state_options.mode == "find-paths":
            for handle in islice(fs.handles, HANDLES_LOOKED_AT):
                if handle.fd >= 0 and not handle.is_dir and not handle.inode.mount.slow:
                    with suppress(OSError):  # saving will say what is the matter with it
                        attr = fs.host.fstat(handle.fd)
                        if not attr[NLINK]:
                            unlinked[handle.inode_id] = attr[BLOCKS] << 9
        return Burden(len(fs.handles), fs.locks.count, sum(unlinked.values()), fs.locks.looks())

    def facts(self) -> dict[str, int]:
        """What it holds, in numbers, for reports."""
        locks = self.fs.locks
        return {
            "inodes": len(self.fs.inodes), "handles": len(self.fs.handles),
            "locks": len(locks.owners) + len(locks.flocks), "waiting": len(self.fs.waits.waiting),
        }

    def describe(self) -> Iterator[str]:
        """Every inode, handle, lock and waiting request in a line of its own."""
        for inode in self.fs.inodes:
            name = inode.name.decode(errors="backslashreplace") if inode.name is not None else "/"
            counts = f"{inode.nlookup} lookups, {inode.mode:#o}"
            yield f"inode {inode.id}: {counts}, last seen as {name!r} in {inode.parent_id}"
        for handle in self.fs.handles:
            yield f"handle {handle.id}: inode {handle.inode_id}, flags {handle.flags:#o}"
        locks = self.fs.locks
        for flock in locks.held_flocks():
            yield f"flock of handle {flock.fh}: {'exclusive' if flock.kind & LOCK_EX else 'shared'}"
        for lock in locks.held():
            kind = "write" if lock.kind == F_WRLCK else "read"
            end = "the end" if lock.end == END else lock.end
            yield f"lock on inode {lock.inode_id}: {kind}, {lock.start} to {end}, process {lock.pid}"
        for waiter in self.fs.waits.waiting.values():
            yield f"request {waiter.unique} waits for a lock of inode {waiter.handle.inode_id}"

    def notes(self) -> list[str]:
        """What the load of a state found worth saying, losses first."""
        report = self.report
        if report is None:
            return []
        more = [f"lost: {report.more_losses} more"] if report.more_losses else []
        return [*(f"lost: {loss.reason}" for loss in report.losses), *more, *report.notes]

    def preflight(self) -> list[PreflightFinding]:
        """What would be lost in a migration, or needs attention, most severe first."""
        return [*preflight(self.fs, self.session, self.state_options)]

    # -- requests --------------------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        """What the driver accepted."""
        self._has_notification = bool(features & self.virtio_features & VIRTIO_FS_F_NOTIFICATION)

    def handle(self, ring: int, chain: Chain, complete: Complete) -> int | None:
        """Serve one chain; None if its reply comes later."""
        if self._busy:
            self._go_on(TRIES_BESIDE)
        # Completing one request may make the guest send another before this one is done.
        slot = self._slot
        self._slot = None
        if slot is None:
            slot = Slot(self)
        slot.ring = ring
        slot.chain = chain
        slot.complete = complete
        if ring == NOTIFICATION_QUEUE and self._has_notification:
            written = None
            slot.unique = -1
        else:
            written = self._serve(chain.readable, chain.writable, slot)
            if written is None:
                slot.unique = self.session.newest_waiting
        if written is None:
            self.open_slots[ring][slot] = None
            self._busy = True
        else:
            self._slot = slot
        return written

    def idle(self) -> bool:
        """A little of what goes on beside requests: call it now and then, also when no requests come.

        Whether there is more to be done at once. Requests that wait for locks of third parties are tried
        again, the collection gets on, and locks that were let go for a migration that failed are taken back.
        """
        self._go_on(LOCK_TRIES)
        return self._collecting or (bool(self.fs.waits.stale) and not self._locks_suspended)

    def _go_on(self, tries: int) -> None:
        if self._locks_wanted:
            self._resume_locks()
        if not self._locks_suspended:
            self.fs.retry_waiting(tries)
        if self.session.retrying:
            self.session.retry(RETRIES)
        if self._collecting:
            self._collecting = not self.collector.step(STEP)
        self._note_business()

    def _be_busy(self) -> None:
        self._busy = True

    @property
    def busy(self) -> bool:
        """Whether something goes on beside the plain serving of requests, so that ``idle`` has work."""
        return self._busy

    def look(self) -> bool:
        """When nobody in this process can go on: try again what somebody outside it held up; is there any?"""
        waits = self.fs.waits
        outside = bool(waits.outside or waits.stale) or self.session.retrying
        if outside:
            self.idle()
        return outside

    def join_aside(self) -> None:
        """Go on with the requests whose calls on other threads have ended."""
        self.fs.join_aside()

    def mounts_changed(self) -> None:
        """Something was mounted or unmounted."""
        self.fs.find_slow_mounts()

    def _note_business(self) -> None:
        waits = self.fs.waits
        to_try = bool(waits.outside or waits.stale) and not self._locks_suspended
        self._busy = self._collecting or self._locks_wanted or self.session.retrying or to_try

    def parked(self, ring: int) -> list[Chain]:
        """Give up the chains of one ring that wait; those of the other rings go on waiting."""
        self._slot = None  # it keeps the memory mapped in which its last request lay
        is_apart = self.session.is_apart
        given_up = [slot for slot in self.open_slots[ring] if not is_apart(slot.unique)]
        self.open_slots[ring] = {slot: None for slot in self.open_slots[ring] if is_apart(slot.unique)}
        if ring != NOTIFICATION_QUEUE or not self._has_notification:
            self.session.park([slot.unique for slot in given_up])
        return [slot.chain for slot in given_up]

    def keep_parked(self, ring: int, state: RingState | None) -> None:
        """Keep the chains that a stopped ring has in flight; they are part of the saved state."""
        if state is None:
            self._kept.pop(ring, None)
        else:
            self._kept[ring] = state

    def resume_parked(self, ring: int) -> RingState | None:
        """Hand them back, once: the ring starts again."""
        self._saved = b""
        if self._root_then:
            self._hide_attempt()
        if self._locks_suspended:
            self._resume_locks()
        return self._kept.pop(ring, None)

    def reset(self) -> None:
        """The driver reset the device."""
        self._kept.clear()
        self._saved = b""
        self._root_then = ()
        self._early = None
        self.session.reset()
        self.open_slots = [{} for _ in self.open_slots]
        if self.collector.active:
            self.collector.start()
            self._collecting = True

    # -- state -----------------------------------------------------------------------------------

    def log_started(self) -> None:
        """A migration begins: collect while the guest goes on."""
        if not self.collector.active:
            self.collector.start()
            self._collecting = True
        self._note_business()

    def log_stopped(self) -> None:
        """It is over or cancelled."""
        self.collector.stop()
        self._collecting = False
        self._note_business()

    def early_state(self) -> Iterator[bytes]:
        """What can go ahead of the state, in pieces; empty ones until it is collected."""
        while self._collecting:
            self._collecting = not self.collector.step(EARLY_STEP)
            yield b""
        self._note_business()
        if self.collector.active and self.session.state.initialized:
            yield from early.pieces(self.collector, self.fs)

    def take_early(self, piece: bytes) -> None:
        """Find the inodes of such a piece before the state comes; StreamError if it is malformed."""
        if self.session.state.initialized or self.state_options.empty_state:
            return
        if self._early is None:
            self._early = EarlyInodes(self.fs)
        self._early.take(piece)

    def save_state(self) -> Iterator[bytes]:
        """The state; afterwards the locks are free for the destination, until a ring starts here again."""
        if self.state_options.save == "none":
            raise _blocked("saved", "--migration-save")
        self._collecting = False
        state = self.collector.save()
        if state:
            state += parked.encode(self._kept)
            self._suspend_locks()
            self._saved = _digest(state)
            if self.collector.leaves_traces:
                self._root_then = self.fs.root_attr()
        self._note_business()
        return (state[at : at + PIECE] for at in range(0, len(state), PIECE))

    def load_state(self, blob: bytes) -> None:
        """Check and apply a state; VmsimError or OSError, and then nothing of it is here.

        The one that was saved here last finds its session as it was, if no ring has run since: the guest's
        machine went to a file and comes back to the back-end that has stayed.
        """
        if self._saved and _digest(blob) == self._saved:
            return
        check_loadable(self.state_options)
        state, rings = parked.split(blob, self.queue_count)
        found, self._early = self._early, None
        self.report = restore_state(self.fs, self.session, state, self.state_options, found)
        if not self.state_options.empty_state:
            self._kept = rings

    def _suspend_locks(self) -> None:
        locks = self.fs.locks
        if locks.owners or locks.flocks:
            self._locks_suspended = True  # also if it fails half-way
            self.fs.suspend_locks()

    def _hide_attempt(self) -> None:
        """A destination may have loaded the state, and failed: to the guest nothing has happened."""
        before, self._root_then = self._root_then, ()
        pairs = zip(before, self.fs.root_attr(), strict=True)
        changed = {at for at, (then, now) in enumerate(pairs) if then != now}
        if changed and changed <= BY_ATTEMPT:
            self.fs.keep_root_ctime(before)

    def _resume_locks(self) -> None:
        """Take the locks back; a destination that failed may need a moment to let go of them."""
        try:
            self.fs.resume_locks()
        except OSError:
            self._locks_wanted = self._busy = True
        else:
            self._locks_suspended = self._locks_wanted = False


def _give_up(error: Exception, opcode: int) -> None:
    """A bug met while a request was served: what the session is now nobody knows, so the device ends."""
    raise InternalFault(error) from error


def check_loadable(options: StateOptions) -> None:
    """MigrationBlocked if ``options`` forbid to load a state."""
    if options.load == "none":
        raise _blocked("loaded", "--migration-load")


def _blocked(what: str, option: str) -> MigrationBlocked:
    return MigrationBlocked(
        f"this back-end's state may not be {what}",
        hint=f"start it with {option} internal, or without that option",
    )


def _digest(state: bytes) -> bytes:
    return hashlib.blake2b(state, digest_size=32).digest()
