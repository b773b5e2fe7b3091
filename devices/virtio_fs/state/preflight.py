"""Will it migrate? What would not survive, why, and what to do, without stopping or altering anything."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Literal

import msgspec

from vmsim.fuse.session import Session
from vmsim.limits import UNLINKED_CONTENT_MAX

from .collect import StateCollector
from .collect_content import content_size
from .collect_paths import NotFound, reason_of
from .options import StateOptions
from .postcard import is_utf8

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.handles import Handle
    from ..passthrough.inodes import Inode

Severity = Literal["error", "warning", "info"]
ONLY_HERE = "nothing here; virtiofsd could not load it"
ORDER: tuple[Severity, ...] = ("error", "warning", "info")


class Finding(msgspec.Struct, frozen=True):
    """One thing to know before a migration.

    ``error``: the load fails (abort) or the guest gets EIO (guest-error). ``warning``: it may. ``info``: it
    survives, but not without further ado. ``inode`` and ``fh`` say whom it concerns (0 and None: everybody).
    """

    severity: Severity
    inode: int
    fh: int | None
    name: str
    why: str
    what: str


def preflight(fs: PassthroughFs, session: Session, options: StateOptions | None = None) -> list[Finding]:
    """All findings for a migration with ``options`` at this moment, the worst first.

    The guest may go on meanwhile; a collection that is under way is not disturbed.
    """
    return _Preflight(fs, session, (options if options is not None else StateOptions()).check()).findings()


class _Preflight:
    def __init__(self, fs: PassthroughFs, session: Session, options: StateOptions) -> None:
        self._fs = fs
        self._session = session
        self._options = options
        self._found: list[Finding] = []
        self._content = 0

    def findings(self) -> list[Finding]:
        if self._options.empty_state:
            what = "keep the back-end, or let it migrate its state"
            self._add("warning", 0, None, "no back-end state is saved, and the guest depends on it", what)
            return self._found
        survey = StateCollector(self._fs, self._session, self._options)
        survey.survey()
        for inode in self._fs.inodes.items():
            self._inode(survey, inode)
        for handle in self._fs.handles.items():
            self._handle(handle, survey)
        for unique in self._session.waiting():
            self._add("info", 0, None, f"request {unique} waits for a lock", "it is parked and sent again")
        if self._options.mode == "file-handles" and not self._fs.host.handles_allowed():
            why = "opening by file handle is not permitted here, and perhaps not at the destination either"
            self._add("warning", 0, None, why, "give the destination CAP_DAC_READ_SEARCH, or use find-paths")
        self._found.sort(key=lambda finding: (ORDER.index(finding.severity), finding.inode))
        return self._found

    def _add(self, severity: Severity, inode: int, fh: int | None, why: str, what: str) -> None:
        known = self._fs.inodes.get(inode)
        name = "" if known is None or known.name is None else os.fsdecode(known.name)
        self._found.append(Finding(severity, inode, fh, name, why, what))

    # -- inodes ----------------------------------------------------------------------------------

    def _inode(self, survey: StateCollector, inode: Inode) -> None:
        nodeid = inode.id
        reason = survey.lost.get(nodeid)
        if reason is not None:
            self._lost(inode, reason)
            return
        if self._options.mode == "file-handles" or nodeid == 1:
            return
        place = survey.place_of(inode)
        if place is None:
            return
        if nodeid in survey.places:
            self._add(
                "info", nodeid, None, f"somebody else renamed it; it is {os.fsdecode(place[1])!r} now",
                "nothing; with confirm-paths it is also found if that happens again",
            )
        if not is_utf8(place[1]):
            if self._options.extension:
                self._add("info", nodeid, None, "its name is not UTF-8", ONLY_HERE)
            else:
                what = "rename it, save with the extension, or use file-handles"
                self._add("error", nodeid, None, "its name is not UTF-8", what)

    def _lost(self, inode: Inode, reason: NotFound) -> None:
        ways = "use file-handles" if self._options.mode == "find-paths" else "use find-paths"
        if inode.state:
            self._add("error", inode.id, None, str(reason), "it is broken already; forget it in the guest")
        elif not reason.unlinked:
            self._add("error", inode.id, None, str(reason), f"give it a name in the share, or {ways}")
        elif not self._options.extension:
            self._add("error", inode.id, None, str(reason), f"close it, save with the extension, or {ways}")
        else:
            self._unlinked(inode, ways)

    def _unlinked(self, inode: Inode, ways: str) -> None:
        try:
            size = content_size(self._fs, inode) if stat.S_ISREG(inode.mode) else 0
        except OSError as error:
            why = f"unlinked, and cannot be read: {reason_of(error)}"
            self._add("error", inode.id, None, why, f"close it, or {ways}")
            return
        self._content += size
        if self._content > UNLINKED_CONTENT_MAX:
            why = f"unlinked, and its {size} bytes exceed the {UNLINKED_CONTENT_MAX} that may travel in all"
            self._add("error", inode.id, None, why, f"close it, or {ways}")
        else:
            why = f"unlinked; its {size} bytes travel along"
            self._add("info", inode.id, None, why, ONLY_HERE)

    # -- handles ---------------------------------------------------------------------------------

    def _handle(self, handle: Handle, survey: StateCollector) -> None:
        nodeid = handle.inode_id
        if nodeid not in self._fs.inodes:
            self._add("error", nodeid, handle.id, "it is open, but the guest forgot its inode", "close it")
        elif handle.error:
            self._add("error", nodeid, handle.id, "it did not survive an earlier migration", "close it")
        elif nodeid not in survey.lost:
            self._reopening(handle)

    def _reopening(self, handle: Handle) -> None:
        """An open file outlives a change of its mode; opening it again does not."""
        access = handle.flags & os.O_ACCMODE
        mask = (os.R_OK if access != os.O_WRONLY else 0) | (os.W_OK if access != os.O_RDONLY else 0)
        try:
            self._fs.host.access(self._fs.path_fd(handle.inode), mask)
        except OSError as error:
            why = f"it could not be opened again: {reason_of(error)}"
            what = "change its mode back, or give the destination the privilege to open it"
            self._add("warning", handle.inode_id, handle.id, why, what)
