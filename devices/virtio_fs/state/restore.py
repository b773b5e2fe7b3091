"""Loading a state into a fresh file server: all of it, or nothing.

Errors of the state itself (StreamError) always fail. What the host refuses follows the policy (reference
section 2.1): ``abort`` fails with RestoreError, ``guest-error`` leaves the guest a node or handle that
answers EIO. After a failure the server is as fresh as before.
"""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from vmsim.errors import MigrationError, StateError, StreamError
from vmsim.fuse.init import InitOptions, check_restored
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.fuse.session import Session
from vmsim.limits import REPORT_LINES_MAX, STATE_BLOB_MAX

from ..passthrough.host_calls import HostAttr
from ..passthrough.lock_table import HeldLock, together
from ..passthrough.told import Told
from . import blob, extension
from .collect_paths import PathFinder, reason_of
from .early_inodes import Changed, EarlyInodes, EarlyRun
from .extension import Anonymous, Extension, Loss
from .negotiation import assumed, check_agreement, check_options
from .options import StateOptions
from .records import (
    FILE_HANDLE,
    INVALID,
    PATH,
    HandleRecord,
    InodeRecord,
    NegotiatedOpts,
    StateBlob,
    describe,
)
from .restore_inodes import OUTSIDE, Impostor, InodeRestorer
from .restore_plan import Plan, clean_flags, lost_anyway, make_plan

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.handles import Handle

SPEC = "virtiofsd state V2"

GOES_ON = "; migration-on-error guest-error goes on without it, and the guest gets EIO there"
HINTS = {
    errno.ENOENT: "share the directory that the source shares, with the names it had at the end",
    errno.ENOTDIR: "share the directory that the source shares, with the names it had at the end",
    errno.ELOOP: "a symlink has taken the place of a directory: put back what was there",
    errno.ESTALE: "put the file back that was there when the machine stopped",
    errno.EXDEV: "share a directory that has the file in it, or migrate with find-paths",
    errno.EACCES: "give the destination the privilege that the source had, or change the mode of the file",
    errno.EPERM: "give the destination the privilege that the source had, or take the immutable and "
    "append-only flags off",
    errno.EROFS: "serve the share writable at the destination, or have the guest close what it writes to",
    errno.ENOSPC: "free some space in the destination's share",
    errno.EDQUOT: "raise the quota at the destination, or free some space there",
    errno.EMFILE: "raise the destination's limit of open files",
    errno.ENFILE: "raise the destination's limit of open files (guest_fds, RLIMIT_NOFILE)",
    errno.EAGAIN: "somebody else holds what conflicts with it, or the source has not let go of its own",
    errno.EBUSY: "somebody else uses it on the host: wait until they have finished",
    errno.EOPNOTSUPP: "the destination's file system cannot do this: use one like the source's",
    errno.EIO: "it was lost at the source already: its pre-flight names such files before the migration",
}
"""What to do about a refusal of the host, by what it said."""
MAY_NOT_OPEN_HANDLES = (
    "file handles take CAP_DAC_READ_SEARCH: give it to the destination, or migrate with find-paths"
)


class RestoreError(MigrationError):
    """The state is sound, but something in it does not exist (or is not permitted) here.

    ``details`` hold ``inode`` or ``fh``. The source can go on.
    """


class RestoreReport(msgspec.Struct):
    """What a load did. ``losses`` are what the guest finds broken, ``notes`` what is worth knowing.

    Of each the first REPORT_LINES_MAX are told; ``more_losses`` counts the other losses.
    """

    inodes: int = 0
    handles: int = 0
    locks: int = 0
    anonymous: int = 0
    losses: list[Loss] = msgspec.field(default_factory=list)
    more_losses: int = 0
    notes: list[str] = msgspec.field(default_factory=list)
    extended: bool = False


def restore_state(
    fs: PassthroughFs, session: Session, data: bytes, options: StateOptions | None = None,
    early: EarlyInodes | None = None,
) -> RestoreReport:  # fmt: skip
    """Load ``data`` into the fresh ``fs`` and ``session``, in which ``early`` may have found inodes already.

    StreamError: the state is malformed, hostile, or needs options that are off here. RestoreError: see there.
    StateError: ``fs`` is in use. Whatever is raised, nothing of the state stays behind.
    """
    options = (options if options is not None else StateOptions()).check()
    if options.empty_state or not data:
        _check_empty(data, options)
        return RestoreReport()
    known = len(early.inodes) if early is not None else 0
    if session.state.initialized or len(fs.inodes) > 1 + known or len(fs.handles):
        raise StateError("a state can be loaded only before the guest's first request")
    root = fs.root_attr()
    if early is not None:
        try:
            return _restore(fs, session, data, options, early, root)
        except (Changed, StreamError):
            session.reset()  # what is wrong with the state, if anything, is found without what came early
    return _restore(fs, session, data, options, None, root)


def _restore(
    fs: PassthroughFs, session: Session, data: bytes, options: StateOptions, early: EarlyInodes | None,
    root: HostAttr,
) -> RestoreReport:  # fmt: skip
    report = RestoreReport()
    checked = _checked(data, options, session.options, early)
    if checked is None:
        session.reset()
        return report
    plan, state, extra, negotiated = checked
    report.extended = extra is not None
    report.notes = plan.notes
    state.inodes = []  # the plan has them, and gives them up one by one
    load = Load(fs, session, options, report, early, root)
    try:
        load.run(plan, state, extra, negotiated)
    except BaseException:
        session.reset()
        raise
    return report


def check_state(data: bytes, options: StateOptions, init_options: InitOptions) -> None:
    """Raise what a load would raise of ``data`` in whatever share; neither a server nor the host is asked."""
    options = options.check()
    if options.empty_state or not data:
        _check_empty(data, options)
        return
    checked = _checked(data, options, init_options)
    if checked is None:
        return
    plan, state, extra, negotiated = checked
    check_restored(negotiated, init_options)
    if options.on_error == "abort" and (lost := lost_anyway(plan, state, extra)):
        raise RestoreError(
            lost, step="load back-end state", side="destination", spec=SPEC, errno=errno.EIO,
            hint=GOES_ON.removeprefix("; "),
        )


def _checked(
    data: bytes, options: StateOptions, init_options: InitOptions, early: EarlyInodes | None = None
) -> tuple[Plan, StateBlob, Extension | None, NegotiatedState] | None:
    """What the state says, checked; None for one of a guest that has not asked for anything yet."""
    if early is not None:
        early.look_again()
    state, runs, extra = _decode(data, options, early.runs if early is not None else [])
    if not state.inodes and not state.handles and not runs:
        return None
    negotiated = _negotiated(state.negotiated, extra, init_options)
    present = early.present(runs, extra, state.mount_paths) if early is not None else None
    return make_plan(state, extra, present), state, extra, negotiated


def _check_empty(data: bytes, options: StateOptions) -> None:
    if not options.empty_state:
        raise StreamError(
            "the back-end state is empty", offset=0, field="version", spec=SPEC,
            hint="the source's back-end does not migrate its state; set empty_state here as well",
        )
    if data:
        raise StreamError(
            f"{len(data)} bytes of back-end state where none were expected", offset=0, spec=SPEC,
            hint="switch empty_state off on this side, or on at the source",
        )


def _decode(
    data: bytes, options: StateOptions, known: list[EarlyRun]
) -> tuple[StateBlob, list[EarlyRun], Extension | None]:
    if len(data) > STATE_BLOB_MAX:
        raise StreamError(
            f"{len(data)} bytes of state where {STATE_BLOB_MAX} are allowed", offset=STATE_BLOB_MAX, spec=SPEC
        )
    state, runs, end = blob.decode_known(data, known)
    return state, runs, extension.decode(data, end) if options.extension else None


def _negotiated(opts: NegotiatedOpts, extra: Extension | None, options: InitOptions) -> NegotiatedState:
    check_options(opts, options)
    if extra is None:
        return assumed(opts, options)
    check_agreement(opts, extra.negotiated)
    if not extra.negotiated.initialized:
        raise StreamError("inodes without a session", field="extension.negotiated", spec=SPEC)
    return extra.negotiated


class Load:
    """One load in progress."""

    def __init__(
        self, fs: PassthroughFs, session: Session, options: StateOptions, report: RestoreReport,
        early: EarlyInodes | None = None, root: HostAttr = (),
    ) -> None:  # fmt: skip
        """``root``: of the share's root, before anything was made in it."""
        self._early = early
        self._root = root
        self._fs = fs
        self._session = session
        self._abort = options.on_error == "abort"
        self._report = report

    def run(
        self, plan: Plan, state: StateBlob, extra: Extension | None, negotiated: NegotiatedState
    ) -> None:
        """Everything, in the order of dependence. The plan's records are used up."""
        fs = self._fs
        unknown = [record.id for record in reversed(plan.inodes) if record.refcount == 0]
        unknown += [nodeid for nodeid, count in plan.counts.items() if count == 0]
        restorer = InodeRestorer(fs, state.mount_paths, self._report.notes)
        self._inodes(restorer, plan, extra)
        fs.inodes.next_id = plan.next_inode
        self._session.restore(negotiated)
        self._handles(plan.handles, extra)
        restorer.finish()
        if extra is not None:
            self._tell(extra)
        restorer.hide_change(self._root)
        fs.handles.next_id = plan.next_handle
        self._drop_unknown(unknown, plan.handles)
        if extra is not None:
            self._locks(extra)
            self._forgotten(extra)

    def _fail(self, what: str, error: OSError, hint: str = "", **details: int) -> None:
        """Under ``abort`` raise, under ``guest-error`` note the loss."""
        why = reason_of(error)
        if self._abort:
            hint = hint or HINTS.get(error.errno or errno.EIO, "")
            raise RestoreError(
                f"{what}: {why}", step="load back-end state", side="destination", spec=SPEC,
                errno=error.errno or errno.EIO,
                hint=hint + GOES_ON if hint else GOES_ON.removeprefix("; "),
                **details,
            ) from error
        self._lose(details.get("inode", 0), details.get("fh"), f"{what}: {why}")

    def _lose(self, inode: int, fh: int | None, why: str) -> None:
        """Go on without it."""
        if len(self._report.losses) < REPORT_LINES_MAX:
            self._report.losses.append(Loss(inode, why))
        else:
            self._report.more_losses += 1

    # -- inodes ----------------------------------------------------------------------------------

    def _inodes(self, restorer: InodeRestorer, plan: Plan, extra: Extension | None) -> None:
        report = self._report
        files = {file.id: file for file in extra.anonymous} if extra is not None else {}
        reasons = {loss.id: loss.reason for loss in extra.losses} if extra is not None else {}
        stale = frozenset(extra.stale) if extra is not None else frozenset()
        one, early = restorer.one, self._early
        try:
            records = plan.inodes
            records.reverse()
            while records:  # what a record says its inode says, so that both need not be there
                record = records.pop()
                if early is not None and early.keep(record):
                    continue
                file = files.get(record.id) if files else None
                is_stale = record.location == INVALID and record.id in stale
                if early is not None and (file is not None or is_stale):
                    early.give_way(record.id)
                try:
                    if file is not None:
                        self._anonymous(restorer, record, file)
                        report.anonymous += 1
                    elif is_stale:
                        restorer.invalid(record, stale=True)  # there is nothing of it to lose
                    elif early is not None:
                        early.replace(record, restorer)
                    else:
                        one(record)
                except OSError as error:
                    why = reasons.get(record.id)
                    self._inode_failed(restorer, record, error if why is None else OSError(error.errno, why))
            if early is not None:
                early.finish(plan)
            report.inodes = len(plan.ids)
            self._prove(restorer)
        except Impostor as impostor:
            raise RestoreError(
                str(impostor), step="load back-end state", side="destination", errno=errno.ESTALE, inode=1,
                hint="share the same directory on both sides, or leave verify-handles out",
            ) from None
        finally:
            restorer.close()

    def _tell(self, extra: Extension) -> None:
        """What earlier migrations left the guest to be told."""
        inodes = self._fs.inodes
        self._fs.reserve_numbers(extra.numbers)
        for entry in extra.told:
            nodeid, *facts = msgspec.structs.astuple(entry)
            inode = inodes.get(nodeid)
            if inode is not None and not inode.state:
                self._fs.tell(nodeid, Told(*facts))

    def _anonymous(self, restorer: InodeRestorer, record: InodeRecord, file: Anonymous) -> None:
        restorer.anonymous(record, file)

    def _inode_failed(self, restorer: InodeRestorer, record: InodeRecord, error: OSError) -> None:
        refused = error.errno == errno.EPERM and record.location == FILE_HANDLE
        self._fail(describe(record), error, MAY_NOT_OPEN_HANDLES if refused else "", inode=record.id)
        restorer.invalid(record)

    def _prove(self, restorer: InodeRestorer) -> None:
        """Look for inodes that a file handle led to and whose path is unknown: they must be in the share."""
        wanted = restorer.unproven
        if not wanted:
            return
        missing = {key: inodes[0] for key, inodes in wanted.items()}
        for found in PathFinder(self._fs).scan(missing):
            if found is not None:
                missing.pop(found[0].key, None)
        for inode in itertools.chain(*map(wanted.__getitem__, missing)):
            outside = OSError(errno.EXDEV, OUTSIDE)
            self._fail(f"inode {inode.id}", outside, inode=inode.id)
            self._fs.fds.discard(inode)
            self._fs.inodes.remove(inode)
            restorer.invalid(InodeRecord(inode.id, inode.nlookup, PATH))

    def _drop_unknown(self, unknown: list[int], handles: list[HandleRecord]) -> None:
        """Directories that only their children needed (lookup count 0) go, as virtiofsd lets them go."""
        inodes = self._fs.inodes
        held = {handle.inode for handle in handles}
        for nodeid in unknown:
            if nodeid not in held:
                inode = inodes.get(nodeid)
                if inode is not None:
                    self._fs.drop(inode)

    def _forgotten(self, extra: Extension) -> None:
        """What the source could not write down at all, such as an open file whose inode the guest forgot."""
        known = {loss.id for loss in self._report.losses}
        for loss in extra.losses:
            if loss.id not in known:
                self._fail(f"inode {loss.id}", OSError(errno.EIO, loss.reason), inode=loss.id)

    # -- handles and locks -----------------------------------------------------------------------

    def _handles(self, handles: list[HandleRecord], extra: Extension | None) -> None:
        more = {entry.id: entry for entry in extra.handles} if extra is not None else {}
        for record in handles:
            entry = more.get(record.id)
            if entry is not None:
                self._handle(record, clean_flags(entry.effective_flags), entry.guest_flags)
            elif self._fs.writeback and record.flags & os.O_ACCMODE == os.O_WRONLY:
                # The guest reads to fill pages of a file that is open for writing only (defect D3).
                self._handle(record, record.flags & ~os.O_ACCMODE | os.O_RDWR, record.flags)
            else:
                self._handle(record, record.flags, record.flags)

    def _handle(self, record: HandleRecord, flags: int, guest_flags: int) -> None:
        """Open one handle again. The server never appends by flag but write by write (defect D4)."""
        fs = self._fs
        inode = fs.inodes.get(record.inode)
        try:
            if inode is not None and inode.state:
                raise OSError(errno.EIO, "its inode did not survive")
            fs.restore_handle(record.id, record.inode, flags, guest_flags)
        except OSError as error:
            self._fail(f"fh {record.id} of inode {record.inode}", error, fh=record.id, inode=record.inode)
            fs.restore_broken_handle(record.id, record.inode, flags, errno.EIO, guest_flags)
        self._report.handles += 1

    def _locks(self, extra: Extension) -> None:
        fs = self._fs
        hint = "somebody else holds a lock that conflicts, or the source has not let go of its own"
        lenders: dict[tuple[int, int], Handle | None] = {}
        for locks in together(HeldLock(*msgspec.structs.astuple(each)) for each in reversed(extra.locks)):
            key = (locks[0].inode_id, locks[0].kind)
            if key not in lenders:
                lenders[key] = fs.lender(*key)
            self._take_locks(locks, lenders[key], hint)
        for flock in extra.flocks:
            try:
                fs.restore_flock(flock.fh, flock.kind)
                self._report.locks += 1
            except OSError as error:
                self._fail(f"flock of fh {flock.fh}", error, hint, fh=flock.fh)

    def _take_locks(self, locks: list[HeldLock], lender: Handle | None, hint: str) -> None:
        """Take a group of locks together, or those that can be taken one by one."""
        fs = self._fs
        with suppress(OSError):
            if lender is not None and fs.restore_locks(locks, lender):
                self._report.locks += len(locks)
                return
        for lock in reversed(locks):
            try:
                if lender is None:
                    raise OSError(errno.EBADF, "no handle is open for it")
                fs.restore_lock(lock, lender)
                self._report.locks += 1
            except OSError as error:
                what = f"lock on bytes {lock.start}-{lock.end} of inode {lock.inode_id}"
                self._fail(what, error, hint, inode=lock.inode_id)
