"""Acting as the caller, on this thread alone.

libc's setresuid switches all threads of the process; the bare system calls switch the one that makes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from vmsim.host.fs.libc import CAPGET, CAPSET, SETGROUPS, SETRESGID, SETRESUID, fail, ffi, syscall

CAP_VERSION_3: Final = 0x20080522
CAP_DAC_OVERRIDE: Final = 1 << 1
CAP_FSETID: Final = 1 << 4
CAP_SETGID: Final = 1 << 6
CAP_SETUID: Final = 1 << 7

_set_ids = syscall("setresid")
_set_groups = syscall("setgroups")
_capabilities = syscall("capabilities")


class LinuxCredentials:
    """The thread's effective ids and capabilities; see ``Credentials`` of the seam."""

    def __init__(self) -> None:
        self._cap_header: Any = ffi.new("unsigned int[2]", [CAP_VERSION_3, 0])
        self._caps: Any = ffi.new("unsigned int[6]")
        self._steps: list[Callable[[], int]] = []
        """What undoes ``become``, in the order in which it was done."""
        self._look()

    def _look(self) -> None:
        """Take down who we are: the program may have changed that since the last request."""
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._groups = tuple(os.getgroups())
        needed = CAP_SETUID | CAP_SETGID
        self.privileged = self._uid == 0 and self._effective() & needed == needed

    def drop_groups(self) -> None:
        """Serve without our own supplementary groups, which must not grant the guest anything.

        Only this thread loses them; without privilege it keeps them (they are the user's own rights).
        """
        if self.privileged and self._groups:
            self._set_groups(())
            self._groups = ()

    def become(self, uid: int, gid: int, groups: tuple[int, ...], override: bool) -> None:
        """Take these effective ids; what was begun is undone if it fails in between.

        ``override`` keeps CAP_DAC_OVERRIDE. A program that has given up its
        privilege since acts as itself, like one that never had any.
        """
        self._look()
        if not self.privileged:
            return
        try:
            if groups != self._groups:
                self._set_groups(groups)
                self._steps.append(self._groups_back)
            if gid != self._gid:
                if _set_ids(SETRESGID, -1, gid, -1):
                    fail("setresgid")
                self._steps.append(lambda: int(_set_ids(SETRESGID, -1, self._gid, -1)))
            if uid != self._uid:
                if _set_ids(SETRESUID, -1, uid, -1):
                    fail("setresuid")
                self._steps.append(lambda: int(_set_ids(SETRESUID, -1, self._uid, -1)))
                if override:
                    self._change_effective(CAP_DAC_OVERRIDE, 0)
        except OSError:
            self.become_self()
            raise

    def become_self(self) -> None:
        """Be ourselves again, or not at all."""
        while self._steps:
            if self._steps.pop()():
                os.abort()

    def _groups_back(self) -> int:
        try:
            self._set_groups(self._groups)
        except OSError:
            return 1
        return 0

    def has_fsetid(self) -> bool:
        """Whether set-group-id bits survive what this thread does."""
        return bool(self._effective() & CAP_FSETID)

    def drop_fsetid(self) -> bool:
        """Give up CAP_FSETID."""
        if not self._effective() & CAP_FSETID:
            return False
        self._change_effective(0, CAP_FSETID)
        return True

    def regain_fsetid(self) -> None:
        """Take CAP_FSETID again."""
        self._change_effective(CAP_FSETID, 0)

    def _set_groups(self, groups: tuple[int, ...]) -> None:
        if _set_groups(SETGROUPS, len(groups), ffi.new("unsigned int[]", groups or [0])):
            fail("setgroups")

    def _effective(self) -> int:
        if _capabilities(CAPGET, self._cap_header, self._caps):
            fail("capget")
        low: int = self._caps[0]
        return low

    def _change_effective(self, add: int, remove: int) -> None:
        self._caps[0] = (self._effective() | add & self._caps[1]) & ~remove
        if _capabilities(CAPSET, self._cap_header, self._caps):
            fail("capset")
