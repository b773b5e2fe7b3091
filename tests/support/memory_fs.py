"""A small file system in memory: every method of FileSystem, with honest lookup counts, for tests."""

from __future__ import annotations

import errno
import stat

from vmsim.fuse.abi.flags import F_UNLCK, F_WRLCK, FATTR_MODE, FATTR_SIZE
from vmsim.fuse.filesystem import DEFERRED, FileSystem


class Node:
    def __init__(self, nodeid, mode):
        self.id = nodeid
        self.mode = mode
        self.data = bytearray()
        self.children = {}
        self.target = b""
        self.xattrs = {}
        self.nlink = 1


def fail(number):
    raise OSError(number, "memory fs")


class MemoryFs(FileSystem):
    """``counts`` are the lookup counts by nodeid; ``log`` is some of what the session asked for."""

    def __init__(self):
        self.log = []
        self.negotiated = None
        self.waits = {}
        self.destroy()
        self.log.clear()

    # session
    def init(self, ctx, negotiated):
        self.negotiated = negotiated
        self.log.append("init")

    def adopt(self, negotiated):
        self.negotiated = negotiated
        self.log.append("adopt")

    def destroy(self):
        root = Node(1, stat.S_IFDIR | 0o755)
        self.nodes = {1: root}
        self.counts = {}
        self.handles = {}
        self.locks = {}
        self.log.append("destroy")

    def interrupt(self, unique):
        self.log.append(("interrupt", unique))
        done = self.waits.pop(unique, None)
        if done is not None:
            done(OSError(errno.EINTR, "interrupted"))

    # helpers
    def node(self, nodeid):
        return self.nodes.get(nodeid) or fail(errno.EBADF)

    def attr(self, node):
        size = len(node.data)
        return (node.id, size, 0, 1, 2, -3, 4, 5, 6, node.mode, node.nlink, 0, 0, 0, 4096, 0)

    def entry(self, node):
        self.counts[node.id] = self.counts.get(node.id, 0) + 1
        return (node.id, 0, 1, 1, 0, 0, *self.attr(node))

    def add(self, parent, name, mode):
        directory = self.node(parent)
        if name in directory.children:
            fail(errno.EEXIST)
        node = Node(max(self.nodes) + 1, mode)
        self.nodes[node.id] = node
        directory.children[name] = node
        return node

    def handle(self, nodeid):
        self.node(nodeid)
        fh = len(self.handles) + 1
        self.handles[fh] = nodeid
        return (fh, 0, 0)

    def opened(self, nodeid, fh):
        if self.handles.get(fh) != nodeid:
            fail(errno.EBADF)
        return self.node(nodeid)

    # nodes
    def lookup(self, ctx, parent, name):
        if name in (b".", b".."):
            return self.entry(self.node(parent))
        return self.entry(self.node(parent).children.get(name) or fail(errno.ENOENT))

    def forget(self, nodeid, nlookup):
        if nodeid in self.counts:
            self.counts[nodeid] = max(0, self.counts[nodeid] - nlookup)

    def getattr(self, ctx, nodeid, fh):
        node = self.node(nodeid) if fh is None else self.opened(nodeid, fh)
        return (1, 0, 0, *self.attr(node))

    def setattr(self, ctx, nodeid, fh, attr):
        node = self.node(nodeid)
        if attr.valid & FATTR_SIZE:
            if attr.size > 1 << 20:
                fail(errno.EFBIG)
            node.data = node.data[: attr.size].ljust(attr.size, b"\0")
        if attr.valid & FATTR_MODE:
            node.mode = attr.mode
        return (1, 0, 0, *self.attr(node))

    def statx(self, ctx, nodeid, fh, flags, mask):
        node = self.node(nodeid)
        return (
            1, 0, 0, b"", mask, 4096, 0, 1, 0, 0, node.mode, 0, node.id, len(node.data), 0, 0,
            1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 0, 0, 8, 1, b"",
        )  # fmt: skip

    def readlink(self, ctx, nodeid):
        return self.node(nodeid).target

    def symlink(self, ctx, parent, name, target):
        node = self.add(parent, name, stat.S_IFLNK | 0o777)
        node.target = target
        return self.entry(node)

    def mknod(self, ctx, parent, name, mode, rdev, umask):
        self.log.append((ctx.groups, ctx.security))
        return self.entry(self.add(parent, name, mode & ~umask))

    def mkdir(self, ctx, parent, name, mode, umask):
        self.log.append((ctx.groups, ctx.security))
        return self.entry(self.add(parent, name, stat.S_IFDIR | (mode & ~umask)))

    def unlink(self, ctx, parent, name):
        self.node(parent).children.pop(name, None) or fail(errno.ENOENT)

    rmdir = unlink

    def rename(self, ctx, parent, name, newparent, newname, flags):
        self.log.append(("rename", flags))
        node = self.node(parent).children.pop(name, None) or fail(errno.ENOENT)
        self.node(newparent).children[newname] = node

    def link(self, ctx, nodeid, newparent, newname):
        node = self.node(nodeid)
        self.node(newparent).children[newname] = node
        return self.entry(node)

    def access(self, ctx, nodeid, mask):
        self.node(nodeid)

    def statfs(self, ctx, nodeid):
        return (100, 50, 40, 1000, 900, 4096, 255, 4096)

    def syncfs(self, ctx, nodeid):
        self.log.append("syncfs")

    # files
    def open(self, ctx, nodeid, flags, open_flags):
        return self.handle(nodeid)

    def create(self, ctx, parent, name, flags, mode, umask, open_flags):
        self.log.append((ctx.groups, ctx.security))
        node = self.add(parent, name, stat.S_IFREG | (mode & ~umask))
        return self.entry(node), self.handle(node.id)

    def tmpfile(self, ctx, parent, flags, mode, umask, open_flags):
        node = Node(max(self.nodes) + 1, stat.S_IFREG | mode)
        self.nodes[node.id] = node
        return self.entry(node), self.handle(node.id)

    def read(self, ctx, nodeid, fh, offset, views, flags, lock_owner):
        data = self.opened(nodeid, fh).data
        done = 0
        for view in views:
            piece = data[offset + done : offset + done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        return done

    def write(self, ctx, nodeid, fh, offset, views, size, write_flags, flags, lock_owner):
        node = self.opened(nodeid, fh)
        data = b"".join(views)
        assert len(data) == size
        if offset + size > 1 << 22:
            fail(errno.EFBIG)
        node.data = node.data.ljust(offset, b"\0")
        node.data[offset : offset + size] = data
        return size

    def flush(self, ctx, nodeid, fh, lock_owner):
        self.opened(nodeid, fh)

    def release(self, ctx, nodeid, fh, flags, release_flags, lock_owner):
        self.handles.pop(fh, None) or fail(errno.EBADF)

    def fsync(self, ctx, nodeid, fh, datasync):
        self.log.append(("fsync", datasync))

    def fallocate(self, ctx, nodeid, fh, offset, length, mode):
        self.opened(nodeid, fh)

    def lseek(self, ctx, nodeid, fh, offset, whence):
        return offset if offset >= 0 else fail(errno.EINVAL)

    def copy_file_range(self, ctx, nodeid_in, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags):
        self.log.append(("copy", length))
        return 3

    def bmap(self, ctx, nodeid, block, blocksize):
        return block ^ 3

    def ioctl(self, ctx, nodeid, fh, flags, cmd, arg, data, out_size):
        return 7, data[::-1][:out_size]

    def poll(self, ctx, nodeid, fh, kh, flags, events, done):
        if events == 0:
            self.waits[ctx.unique] = done
            return DEFERRED
        return events & 5

    # directories
    def opendir(self, ctx, nodeid, flags):
        return self.handle(nodeid)

    def entries(self, nodeid, offset):
        children = sorted(self.node(nodeid).children.items())
        return list(enumerate(children, 1))[offset:]

    def readdir(self, ctx, nodeid, fh, offset, sink):
        for position, (name, node) in self.entries(nodeid, offset):
            if not sink.add(node.id, position, node.mode >> 12, name):
                return

    def readdirplus(self, ctx, nodeid, fh, offset, sink):
        for position, (name, node) in self.entries(nodeid, offset):
            if not sink.fits(name):
                return
            assert sink.add(self.entry(node), position, node.mode >> 12, name)

    def releasedir(self, ctx, nodeid, fh, flags):
        self.handles.pop(fh, None) or fail(errno.EBADF)

    def fsyncdir(self, ctx, nodeid, fh, datasync):
        self.log.append(("fsyncdir", datasync))

    # attributes
    def setxattr(self, ctx, nodeid, name, value, flags, setxattr_flags):
        self.log.append(("setxattr", flags, setxattr_flags))
        self.node(nodeid).xattrs[name] = value

    def getxattr(self, ctx, nodeid, name, size):
        value = self.node(nodeid).xattrs.get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    def listxattr(self, ctx, nodeid, size):
        return b"".join(name + b"\0" for name in self.node(nodeid).xattrs)

    def removexattr(self, ctx, nodeid, name):
        self.node(nodeid).xattrs.pop(name, None) is None and fail(errno.ENODATA)

    # locks
    def getlk(self, ctx, nodeid, fh, owner, lock, lk_flags):
        holder = self.locks.get(nodeid)
        return (lock.start, lock.end, F_UNLCK if holder in (None, owner) else F_WRLCK, 0)

    def setlk(self, ctx, nodeid, fh, owner, lock, lk_flags, done):
        if lock.type == F_UNLCK:
            self.locks.pop(nodeid, None)
            for unique in list(self.waits)[:1]:
                self.locks[nodeid] = -1
                self.waits.pop(unique)(None)
            return None
        if self.locks.setdefault(nodeid, owner) == owner:
            return None
        if done is None:
            fail(errno.EAGAIN)
        self.waits[ctx.unique] = done
        return DEFERRED

    # others
    def notify_reply(self, ctx, unique, nodeid, offset, views, size):
        self.log.append(("notify_reply", unique, nodeid, offset, b"".join(views)))

    def setupmapping(self, ctx, nodeid, fh, foffset, length, flags, moffset):
        self.log.append(("setupmapping", foffset, length, flags, moffset))

    def removemapping(self, ctx, nodeid, ranges):
        self.log.append(("removemapping", ranges))
