"""Will it migrate? What would not survive, why, and what to do, without stopping or altering anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import msgspec

from vmsim.fuse.session import Session

from .collect import StateCollector
from .collect_records import RecordBuilder
from .options import StateOptions
from .postcard import is_utf8
from .restore_trial import Failure, try_state

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.inodes import Inode
    from .collected import Collected

Severity = Literal["error", "warning", "info"]
ONLY_HERE = "nothing here; virtiofsd could not load it"
ORDER: tuple[Severity, ...] = ("error", "warning", "info")


class Finding(msgspec.Struct, frozen=True):
    """One thing to know before a migration.

    ``error``: loading it here would fail (abort), or the guest get EIO (guest-error); that has been tried.
    ``warning``: it may. ``info``: it survives, but something has to be done for it. ``inode`` and ``fh`` say
    whom it concerns (0 and None: everybody).
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
    """Collects what would be saved, tries to load it, and puts what that says into words."""

    def __init__(self, fs: PassthroughFs, session: Session, options: StateOptions) -> None:
        self._fs = fs
        self._session = session
        self._options = options
        self._found: list[Finding] = []

    def findings(self) -> list[Finding]:
        if self._options.empty_state:
            what = "keep the back-end, or let it migrate its state"
            self._add("warning", 0, None, "no back-end state is saved, and the guest depends on it", what)
            return self._found
        if self._session.state.initialized:
            self._try()
        for unique in self._session.waiting():
            self._add("info", 0, None, f"request {unique} waits for a lock", "it is parked and sent again")
        if self._options.mode == "file-handles" and not self._fs.host.handles_allowed():
            why = "opening by file handle is not permitted here, and perhaps not at the destination either"
            self._add("warning", 0, None, why, "give the destination CAP_DAC_READ_SEARCH, or use find-paths")
        self._found.sort(key=lambda finding: (ORDER.index(finding.severity), finding.inode))
        return self._found

    def _try(self) -> None:
        survey = StateCollector(self._fs, self._session, self._options)
        survey.survey()
        builder = RecordBuilder(survey.found, self._fs, self._session, contents=False)
        data = builder.build()
        failed = set()
        for failure in try_state(self._fs, self._session, data, self._options):
            failed.add(failure.inode)
            fh = failure.fh
            if failure.inode not in self._fs.inodes:  # forgotten, and open all the same
                fh = next((each.id for each in self._fs.handles if each.inode_id == failure.inode), None)
            self._add("error", failure.inode, fh, failure.why, self._remedy(survey.found, failure))
        for inode in self._fs.inodes.items():
            if inode.id not in failed and inode.id != 1:
                self._surviving(survey.found, builder, inode)

    def _add(self, severity: Severity, inode: int, fh: int | None, why: str, what: str) -> None:
        known = self._fs.inodes.get(inode)
        name = "" if known is None or known.name is None else os.fsdecode(known.name)
        self._found.append(Finding(severity, inode, fh, name, why, what))

    def _remedy(self, found: Collected, failure: Failure) -> str:
        """What can be done about it here, before the migration."""
        other = "file-handles" if self._options.mode == "find-paths" else "find-paths"
        inode = self._fs.inodes.get(failure.inode)
        if inode is None:
            return "close it"
        if inode.state:
            return "it is broken already; forget it in the guest"
        reason = found.lost.get(failure.inode)
        if reason is None and failure.fh is not None:
            return "change its mode back, give the destination the privilege to open it, or close it"
        if reason is None:
            place = found.place_of(inode)
            if place is not None and not is_utf8(place[1]):
                return "rename it, save with the extension, or use file-handles"
            return f"give it back the name it had, or use {other}"
        if not reason.unlinked:
            return f"give it a name in the share, or use {other}"
        return f"close it, or use {other}" if self._options.extension else (
            f"close it, save with the extension, or use {other}"
        )

    def _surviving(self, found: Collected, builder: RecordBuilder, inode: Inode) -> None:
        """What survives, but something has to be done for it."""
        nodeid = inode.id
        if nodeid in builder.travelling:
            why = f"unlinked; its {builder.travelling[nodeid]} bytes travel along"
            self._add("info", nodeid, None, why, ONLY_HERE)
            return
        place = found.place_of(inode)
        if self._options.mode == "file-handles" or place is None:
            return
        if nodeid in found.places:
            self._add(
                "info", nodeid, None, f"somebody else renamed it; it is {os.fsdecode(place[1])!r} now",
                "nothing; with confirm-paths it is also found if that happens again",
            )
        if not is_utf8(place[1]):
            self._add("info", nodeid, None, "its name is not UTF-8", ONLY_HERE)
