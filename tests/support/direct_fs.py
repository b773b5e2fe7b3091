"""The functions of ``os`` over a FUSE session without any machine or guest: the bare server's client."""

from __future__ import annotations

import errno
import os

from tests.support.fuse_rig import Rig
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f


class DirectFs:
    """A client without caches: every call looks its path up and forgets it again."""

    def __init__(self, fs, options, **kwargs):
        self.fs = fs
        self.rig = Rig(options, fs=fs, **kwargs)
        self.files = {}
        self.uid = 0

    def ask(self, opcode, *args, **kwargs):
        answer = self.rig.call(opcode, *args, uid=self.uid, **kwargs)
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.body

    # -- paths

    def walk(self, path):
        """(nodeid, what was looked up on the way)."""
        node, seen = 1, []
        for name in os.fsencode(path).strip(b"/").split(b"/"):
            if name:
                node = self.ask(op.LOOKUP, node, (), (name,)).nodeid
                seen.append(node)
        return node, seen

    def forget(self, seen):
        for node in seen:
            self.rig.call(op.FORGET, node, (1,))

    def at(self, path, opcode, args=(), names=(), **kwargs):
        node, seen = self.walk(path)
        try:
            return self.ask(opcode, node, args, names, **kwargs)
        finally:
            self.forget(seen)

    def beneath(self, path, opcode, args=(), names=(), **kwargs):
        """Ask the parent of ``path`` with its last name first; a new lookup is forgotten at once."""
        head, name = os.path.split(os.fsencode(path))
        body = self.at(head, opcode, args, (name, *names), **kwargs)
        if hasattr(body, "nodeid"):
            self.forget([body.nodeid])
        return body

    # -- names

    def mkdir(self, path, mode=0o777):
        self.beneath(path, op.MKDIR, (mode, 0o22))

    def mkfifo(self, path, mode=0o666):
        self.beneath(path, op.MKNOD, (0o10000 | mode, 0, 0o22, 0))

    def rmdir(self, path):
        self.beneath(path, op.RMDIR)

    def unlink(self, path):
        self.beneath(path, op.UNLINK)

    def symlink(self, target, path):
        self.beneath(path, op.SYMLINK, (), (os.fsencode(target),))

    def link(self, src, dst):
        node, seen = self.walk(src)
        try:
            self.beneath(dst, op.LINK, (node,))
        finally:
            self.forget(seen)

    def rename(self, src, dst):
        self.renameat2(src, dst, 0)

    def renameat2(self, src, dst, flags):
        head, name = os.path.split(os.fsencode(dst))
        node, seen = self.walk(head)
        try:
            self.beneath(src, op.RENAME2, (node, flags, 0), (name,))
        finally:
            self.forget(seen)

    def readlink(self, path):
        return os.fsdecode(self.at(path, op.READLINK, size=4096))

    def listdir(self, path):
        node, seen = self.walk(path)
        fh = self.ask(op.OPENDIR, node, (0, 0)).fh
        names, position = [], 0
        try:
            while body := self.ask(op.READDIR, node, (fh, position, 512, 0, 0, 0, 0), size=512):
                for row, name in client.decode_dirents(body):
                    names.append(os.fsdecode(name))
                    position = row.off
        finally:
            self.ask(op.RELEASEDIR, node, (fh, 0, 0, 0))
            self.forget(seen)
        return [name for name in names if name not in (".", "..")]

    # -- attributes

    def lstat(self, path):
        return _stat_result(self.at(path, op.GETATTR, (0, 0, 0)))

    def fstat(self, fd):
        node, fh = self.files[fd]
        return _stat_result(self.ask(op.GETATTR, node, (1, 0, fh)))

    def setattr(self, path, valid, **fields):
        self.at(path, op.SETATTR, setattr_args(valid, **fields))

    def chmod(self, path, mode):
        self.setattr(path, f.FATTR_MODE, mode=mode)

    def chown(self, path, uid, gid):
        self.setattr(path, f.FATTR_UID | f.FATTR_GID, uid=uid, gid=gid)

    def truncate(self, path, size):
        self.setattr(path, f.FATTR_SIZE, size=size)

    def utime(self, path, *, ns):
        self.setattr(path, f.FATTR_ATIME | f.FATTR_MTIME, atime=ns[0], mtime=ns[1])

    def setxattr(self, path, name, value, flags=0):
        self.at(path, op.SETXATTR, (len(value), flags), (name.encode(),), data=value, compat=True)

    def getxattr(self, path, name):
        return self.at(path, op.GETXATTR, (65536, 0), (name.encode(),), size=65536)

    def listxattr(self, path):
        names = self.at(path, op.LISTXATTR, (65536, 0), size=65536)
        return [os.fsdecode(name) for name in names.split(b"\0")[:-1]]

    def removexattr(self, path, name):
        self.at(path, op.REMOVEXATTR, (), (name.encode(),))

    # -- files

    def open(self, path, flags, mode=0o777):
        if flags & os.O_CREAT:
            head, name = os.path.split(os.fsencode(path))
            made = self.at(head, op.CREATE, (flags, mode & ~0o22, 0o22, 0), (name,))
            self.files[made.fh] = (made.nodeid, made.fh)
            return made.fh
        node, _ = self.walk(path)
        fh = self.ask(op.OPEN, node, (flags, 0)).fh
        self.files[fh] = (node, fh)
        return fh

    def close(self, fd):
        node, fh = self.files.pop(fd)
        self.ask(op.FLUSH, node, (fh, 0, 0, 7))
        self.ask(op.RELEASE, node, (fh, 0, 0, 7))
        self.forget([node])

    def pread(self, fd, size, offset):
        node, fh = self.files[fd]
        return self.ask(op.READ, node, (fh, offset, size, 0, 0, 0, 0), size=size)

    def pwrite(self, fd, data, offset, flags=0):
        node, fh = self.files[fd]
        return self.ask(op.WRITE, node, (fh, offset, len(data), 0, 0, flags, 0), (), data).size

    def fsync(self, fd):
        node, fh = self.files[fd]
        self.ask(op.FSYNC, node, (fh, 0, 0))

    def fallocate(self, fd, mode, offset, length):
        node, fh = self.files[fd]
        self.ask(op.FALLOCATE, node, (fh, offset, length, mode, 0))

    def copy_file_range(self, src, dst, count, offset_src, offset_dst):
        node_in, fh_in = self.files[src]
        node_out, fh_out = self.files[dst]
        args = (fh_in, offset_src, node_out, fh_out, offset_dst, count, 0)
        return self.ask(op.COPY_FILE_RANGE, node_in, args).size


def setattr_args(valid, *, fh=0, size=0, mode=0, uid=0, gid=0, atime=0, mtime=0):
    """A SetattrIn; times in ns."""
    return (
        valid, 0, fh, size, 0, atime // 10**9, mtime // 10**9, 0, atime % 10**9, mtime % 10**9, 0,
        mode, 0, uid, gid, 0,
    )  # fmt: skip


def _stat_result(a):
    return os.stat_result(
        (a.mode, a.ino, 0, a.nlink, a.uid, a.gid, a.size, a.atime, a.mtime, a.ctime,
         a.atime, a.mtime, a.ctime, a.atime * 10**9 + a.atimensec, a.mtime * 10**9 + a.mtimensec,
         a.ctime * 10**9 + a.ctimensec, a.blksize, a.blocks, a.rdev)
    )  # fmt: skip


def refused(code):
    """A context in which an OSError with this errno must come."""
    return _Refused(code)


class _Refused:
    def __init__(self, code):
        self.code = code

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert isinstance(error, OSError), f"expected {errno.errorcode[self.code]}, got {error!r}"
        assert error.errno == self.code, f"expected {errno.errorcode[self.code]}, got {error!r}"
        return True
