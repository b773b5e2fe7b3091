"""Who a guest process is: ids and capabilities, changed as Linux lets a process change them."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeAlias

from vmsim.guest.calls import permissions
from vmsim.guest.calls.capabilities import ALL_CAPABILITIES, CAP_SETGID, CAP_SETUID
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.state import Process

Ids: TypeAlias = tuple[int, int, int]
"""Real, effective and saved id."""

_Credentials: TypeAlias = tuple[
    int, int, list[int], tuple[int, int] | None, tuple[int, int] | None, int | None, int | None
]
"""Effective user and group, groups, real and saved pair, effective and permitted capabilities."""

KEEP: Final = -1
GROUPS_MAX: Final = 65536
ID_MAX: Final = (1 << 32) - 2


class Credentials:
    """getuid, setresuid, setgroups, capset and the like, with the names of ``os``."""

    def __init__(self, ctx: ProcessContext) -> None:
        self._ctx = ctx

    def as_user(
        self, uid: int, gid: int, groups: Sequence[int] = (), capabilities: Iterable[int] | None = None
    ) -> AbstractContextManager[None]:
        """Run the block with other credentials: real, effective and saved ids alike.

        ``capabilities`` are the numbers of those that are effective and permitted (None: all for user 0,
        none for others).
        """
        bits = None if capabilities is None else sum(1 << number for number in set(capabilities))
        return self._acting((uid, gid, list(groups), None, None, bits, bits))

    def real_ids(self) -> AbstractContextManager[None]:
        """The credentials by which access(2) judges: the real ids, and the rights of a process with these."""
        process = self._ctx.process
        if process.real is None and process.capabilities is None:
            return nullcontext()
        uid, gid = process.real or (process.uid, process.gid)
        return self._acting((uid, gid, process.groups, None, None, 0 if uid else _permitted(process), None))

    @contextmanager
    def _acting(self, credentials: _Credentials) -> Iterator[None]:
        process = self._ctx.process
        before = _credentials(process)
        _assign(process, credentials)
        try:
            yield
        finally:
            now = self._ctx.cell.kernel.state.processes.get(self._ctx.pid)
            if now is not None:
                _assign(now, before)

    # Asking

    def getresuid(self) -> Ids:
        """Real, effective and saved user id."""
        return _ids(self._ctx.process, 0)

    def getresgid(self) -> Ids:
        """Real, effective and saved group id."""
        return _ids(self._ctx.process, 1)

    def getuid(self) -> int:
        """The real user id."""
        return self.getresuid()[0]

    def geteuid(self) -> int:
        """The effective user id: the one that counts for files."""
        return self._ctx.process.uid

    def getgid(self) -> int:
        """The real group id."""
        return self.getresgid()[0]

    def getegid(self) -> int:
        """The effective group id."""
        return self._ctx.process.gid

    def getgroups(self) -> list[int]:
        """The supplementary groups."""
        return list(self._ctx.process.groups)

    def capget(self) -> tuple[int, int]:
        """Effective and permitted capabilities as bits by number."""
        process = self._ctx.process
        return permissions.effective(process), _permitted(process)

    # Changing

    def capset(self, effective: int, permitted: int) -> None:
        """Set both sets: none may be gained (EPERM), and only permitted ones are effective."""
        process = self._ctx.process
        if permitted & ~_permitted(process) or effective & ~permitted:
            fail(errno.EPERM)
        process.capabilities, process.permitted = effective, permitted

    def setgroups(self, groups: Sequence[int]) -> None:
        """Set the supplementary groups (CAP_SETGID)."""
        if not permissions.capable(self._ctx.process, CAP_SETGID):
            fail(errno.EPERM)
        if len(groups) > GROUPS_MAX or any(not 0 <= gid <= ID_MAX for gid in groups):
            fail(errno.EINVAL)
        self._ctx.process.groups = list(groups)

    def setresuid(self, ruid: int, euid: int, suid: int) -> None:
        """Set all three user ids; -1 keeps one. Without CAP_SETUID only to one of them."""
        process = self._ctx.process
        old = _ids(process, 0)
        new = _chosen(old, (ruid, euid, suid))
        if not permissions.capable(process, CAP_SETUID) and not set(new) <= set(old):
            fail(errno.EPERM)
        self._become(new)

    def setresgid(self, rgid: int, egid: int, sgid: int) -> None:
        """Set all three group ids; -1 keeps one. Without CAP_SETGID only to one of them."""
        process = self._ctx.process
        old = _ids(process, 1)
        new = _chosen(old, (rgid, egid, sgid))
        if not permissions.capable(process, CAP_SETGID) and not set(new) <= set(old):
            fail(errno.EPERM)
        _set_ids(process, 1, new)

    def setuid(self, uid: int) -> None:
        """Set the user id: all three with CAP_SETUID, else the effective one to the real or saved one."""
        old = self.getresuid()
        if permissions.capable(self._ctx.process, CAP_SETUID):
            self._become(_chosen(old, (uid, uid, uid)))
        elif uid in (old[0], old[2]):
            self._become((old[0], uid, old[2]))
        else:
            fail(errno.EPERM)

    def setgid(self, gid: int) -> None:
        """Set the group id: all three with CAP_SETGID, else the effective one to the real or saved one."""
        old = self.getresgid()
        if permissions.capable(self._ctx.process, CAP_SETGID):
            _set_ids(self._ctx.process, 1, _chosen(old, (gid, gid, gid)))
        elif gid in (old[0], old[2]):
            _set_ids(self._ctx.process, 1, (old[0], gid, old[2]))
        else:
            fail(errno.EPERM)

    def seteuid(self, euid: int) -> None:
        """Set the effective user id."""
        self.setresuid(KEEP, euid, KEEP)

    def setegid(self, egid: int) -> None:
        """Set the effective group id."""
        self.setresgid(KEEP, egid, KEEP)

    def setreuid(self, ruid: int, euid: int) -> None:
        """Set real and effective user id; -1 keeps one."""
        process = self._ctx.process
        old = _ids(process, 0)
        self._become(_exchanged(old, ruid, euid, permissions.capable(process, CAP_SETUID)))

    def setregid(self, rgid: int, egid: int) -> None:
        """Set real and effective group id; -1 keeps one."""
        process = self._ctx.process
        old = _ids(process, 1)
        _set_ids(process, 1, _exchanged(old, rgid, egid, permissions.capable(process, CAP_SETGID)))

    def _become(self, new: Ids) -> None:
        """Take user ids, and lose or regain capabilities with them (capabilities(7))."""
        process = self._ctx.process
        old = _ids(process, 0)
        effective, permitted = permissions.effective(process), _permitted(process)
        if 0 in old and 0 not in new:
            effective = permitted = 0
        elif not old[1] and new[1]:
            effective = 0
        elif old[1] and not new[1]:
            effective = permitted
        _set_ids(process, 0, new)
        process.capabilities, process.permitted = effective, permitted


def _permitted(process: Process) -> int:
    own = process.permitted
    return own if own is not None else 0 if process.uid else ALL_CAPABILITIES


def _ids(process: Process, which: int) -> Ids:
    """Real, effective and saved id: users' (``which`` 0) or groups' (1)."""
    now = (process.uid, process.gid)
    return (process.real or now)[which], now[which], (process.saved or now)[which]


def _set_ids(process: Process, which: int, ids: Ids) -> None:
    other = _ids(process, 1 - which)
    users, groups = (ids, other) if which == 0 else (other, ids)
    pairs = list(zip(users, groups, strict=True))
    process.uid, process.gid = pairs[1]
    process.real = None if pairs[0] == pairs[1] else pairs[0]
    process.saved = None if pairs[2] == pairs[1] else pairs[2]


def _chosen(old: Ids, wanted: Ids) -> Ids:
    """The ids with those kept that are -1; EINVAL for what is no id."""
    if any(not 0 <= value <= ID_MAX for value in wanted if value != KEEP):
        fail(errno.EINVAL)
    first, second, third = (
        before if value == KEEP else value for before, value in zip(old, wanted, strict=True)
    )
    return first, second, third


def _exchanged(old: Ids, real: int, effective: int, privileged: bool) -> Ids:
    """The ids after setreuid(2) or setregid(2)."""
    new_real, new_effective, _ = _chosen(old, (real, effective, KEEP))
    if not privileged and (new_real not in old[:2] or new_effective not in old):
        fail(errno.EPERM)
    moved = real != KEEP or (effective != KEEP and effective != old[0])
    return new_real, new_effective, new_effective if moved else old[2]


def _credentials(process: Process) -> _Credentials:
    return (
        process.uid, process.gid, process.groups, process.real, process.saved, process.capabilities,
        process.permitted,
    )  # fmt: skip


def _assign(process: Process, values: _Credentials) -> None:
    (
        process.uid, process.gid, process.groups, process.real, process.saved, process.capabilities,
        process.permitted,
    ) = values  # fmt: skip
