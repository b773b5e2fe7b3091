"""All that a guest can find out about the files that it knows, named and unlinked: equal before and after.

    before = inventory(machine)
    machine = machine.migrate()
    assert changes(before, inventory(machine)) == []

The server is asked anew, past the guest's caches; nothing that is asked changes anything, not even a time of
access. What only content can show (data, directory entries) is not in here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from tests.support.inode_flags import GETFLAGS
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import GETATTR_FH
from vmsim.fuse.abi.replies import ATTR_OUT, AttrOut
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.walk import PathWalk
from vmsim.guest.calls.xattrs import ExtendedAttributes

AUDITOR: Final = 99
"""The guest process that asks: it holds no locks, so that it sees those of all others."""


def inventory(machine: Any, without: Collection[int] = ()) -> dict[str, Any]:
    """Facts by what they are about; leaves out the open files of the guest processes ``without``."""
    fs = machine.mount(AUDITOR)
    state = machine.kernel.state
    hidden = {number for pid in without for number in state.processes[pid].fds.values()}
    found: dict[str, Any] = {}
    for nodeid, node in sorted(state.nodes.items()):
        for name, fact in _of_node(fs, nodeid, node):
            found[f"node {nodeid}: {name}"] = fact
    for number, file in sorted(state.files.items()):
        if number not in hidden:
            for name, fact in _of_file(fs, number, file):
                found[f"open file {number} of node {file.nodeid}: {name}"] = fact
    fs.exit()
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs, one line each."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name, 'nothing')} became {after.get(name, 'nothing')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _of_node(fs: Any, nodeid: int, node: Any) -> Iterator[tuple[str, Any]]:
    yield from _attributes(fs, nodeid, None)
    yield "device", node.device_number
    yield "extended attributes", _answer(lambda: _xattrs(fs, nodeid))
    if stat.S_ISLNK(node.attr.mode):
        yield "target", _answer(lambda: _walk(fs).read_link(nodeid))


def _of_file(fs: Any, number: int, file: Any) -> Iterator[tuple[str, Any]]:
    yield "flags", oct(file.flags)
    yield "offset", file.offset
    if file.fh is None:
        return
    if not file.directory:
        yield from _attributes(fs, file.nodeid, file.fh)
        seek = (file.fh, 0, os.SEEK_DATA, 0)
        yield "first data", _answer(lambda: fs.context.call(op.LSEEK, file.nodeid, seek).reply)
    fd = fs.context.new_fd(number)
    file.refs += 1
    try:
        yield "inode flags", _answer(lambda: fs.ioctl(fd, GETFLAGS, bytes(4)))
        if not file.directory:
            yield "locks", _answer(lambda: _locks(fs, fd))
            yield "may be read", _answer(
                lambda: fs.context.call(op.READ, file.nodeid, (file.fh, *[0] * 6)).error
            )
            yield "may be written", _answer(
                lambda: fs.context.call(op.WRITE, file.nodeid, (file.fh, *[0] * 5, 0), room=8).error
            )
    finally:
        del fs.process.fds[fd]
        file.refs -= 1


def _attributes(fs: Any, nodeid: int, fh: int | None) -> Iterator[tuple[str, Any]]:
    args = (0, 0, 0) if fh is None else (GETATTR_FH, 0, fh)
    try:
        reply = fs.context.call(op.GETATTR, nodeid, args, room=ATTR_OUT.size).reply
    except OSError as error:
        yield "attributes", errno.errorcode[error.errno or 0]
        return
    yield from list(zip(AttrOut._fields, ATTR_OUT.unpack_from(reply), strict=True))[3:]


def _xattrs(fs: Any, nodeid: int) -> dict[bytes, Any]:
    fetch = ExtendedAttributes(fs.context, Access(fs.context), _walk(fs)).fetch
    names = sorted(name for name in fetch(op.LISTXATTR, nodeid, ()).split(b"\0") if name)
    return {name: _answer(lambda name=name: fetch(op.GETXATTR, nodeid, (name,))) for name in names}


def _walk(fs: Any) -> PathWalk:
    """The process's way to inodes without a path to them."""
    return PathWalk(fs.context, Access(fs.context))


def _locks(fs: Any, fd: int) -> list[tuple[int, ...]]:
    """All that somebody else holds, in order."""
    found, start = [], 0
    while True:
        lock = fs.getlk(fd, fcntl.F_WRLCK, start, 0)
        if lock.kind == fcntl.F_UNLCK:
            return found
        found.append(tuple(lock))
        if not lock.length:
            return found
        start = lock.start + lock.length


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
