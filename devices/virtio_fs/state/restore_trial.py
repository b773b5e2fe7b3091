"""What loading a state would say, found out by loading it into a file server that nobody uses.

Everything that a load asks of the host is asked here too, in the same order and by the same code. Only what
would leave a trace is not done: unlinked files are not made anew, locks are not taken, and each file that the
guest has open is opened again and closed at once.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from vmsim.errors import VmsimError
from vmsim.fuse.session import Session

from ..passthrough.inodes import NOWHERE
from . import blob, extension
from .extension import Anonymous, Extension
from .options import StateOptions
from .records import HandleRecord, InodeRecord
from .restore import Load, RestoreReport
from .restore_content import check_makeable
from .restore_inodes import InodeRestorer
from .restore_plan import make_plan

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs


class Failure(NamedTuple):
    """One thing that the load would say: which inode (0: the state itself), which open file, and why."""

    inode: int
    fh: int | None
    why: str


def try_state(fs: PassthroughFs, session: Session, data: bytes, options: StateOptions) -> list[Failure]:
    """Every failure of a load of ``data`` on the directory of ``fs``, which is not touched."""
    share_fd = fs.host.reopen(fs.path_fd(fs.root), os.O_RDONLY | os.O_DIRECTORY)
    twin = type(fs)(fs.host, fs.share, fs.options, share_fd=share_fd)
    scratch = Session(twin, session.options)
    failures: list[Failure] = []
    try:
        state, end = blob.decode(data)
        extra = extension.decode(data, end) if options.extension else None
        if state.inodes or state.handles:
            load = _Trial(twin, scratch, options, RestoreReport(), failures)
            load.run(make_plan(state, extra), state, extra, session.save())
    except VmsimError as error:
        failures.append(Failure(0, None, str(error)))
    finally:
        scratch.reset()
        twin.close()
    return failures


class _Trial(Load):
    """A load that goes on whatever happens, and remembers it."""

    def __init__(
        self, fs: PassthroughFs, session: Session, options: StateOptions, report: RestoreReport,
        failures: list[Failure],
    ) -> None:  # fmt: skip
        super().__init__(fs, session, options, report)
        self._abort = False
        self._failures = failures
        self._made: set[int] = set()
        self._lost: set[int] = set()

    def _lose(self, inode: int, fh: int | None, why: str) -> None:
        super()._lose(inode, fh, why)
        if fh is not None and inode in self._lost:
            return  # that its inode is lost has been told
        self._failures.append(Failure(inode, fh, why))
        if fh is None:
            self._lost.add(inode)

    def _anonymous(self, restorer: InodeRestorer, record: InodeRecord, file: Anonymous) -> None:
        """A regular file fits into memory at the worst; anything else needs a name for a moment."""
        if not stat.S_ISREG(file.mode):
            check_makeable(self._fs)
        self._fs.inodes.restore(record.id, NOWHERE, 0, stat.S_IFMT(file.mode)).nlookup = record.refcount
        self._made.add(record.id)

    def _handle(self, record: HandleRecord, flags: int, guest_flags: int) -> None:
        fs = self._fs
        if record.inode in self._made:
            if fs.options.readonly and flags & os.O_ACCMODE != os.O_RDONLY:
                refused = OSError(errno.EROFS, "the share is served read-only")
                what = f"fh {record.id} of inode {record.inode}"
                self._fail(what, refused, fh=record.id, inode=record.inode)
            return
        super()._handle(record, flags, guest_flags)
        handle = fs.handles.get(record.id)
        if handle is not None:
            fs.handles.remove(handle)
            if handle.fd >= 0:
                fs.host.close(handle.fd)

    def _locks(self, extra: Extension) -> None:
        """The guest holds them here, so nobody else does."""
