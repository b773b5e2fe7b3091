"""GuestFs: what a guest program calls. Names and semantics are those of Python's ``os``."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from vmsim.errors import UsageError
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.attrs import Attributes
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.context import ProcessContext
from vmsim.guest.calls.credentials import Credentials
from vmsim.guest.calls.dirs import Directories
from vmsim.guest.calls.fileobj import FileObjects
from vmsim.guest.calls.files import FileIo
from vmsim.guest.calls.guest_pages import GuestPages
from vmsim.guest.calls.locks import Locks
from vmsim.guest.calls.names import Names
from vmsim.guest.calls.opening import Opening
from vmsim.guest.calls.space import Space
from vmsim.guest.calls.submit import Submission
from vmsim.guest.calls.transfer import Transfer
from vmsim.guest.calls.walk import PathWalk
from vmsim.guest.calls.xattrs import ExtendedAttributes
from vmsim.guest.kernel.kernel import GuestKernel, KernelCell
from vmsim.guest.state import Process


class Parts(NamedTuple):
    """The objects with calls in them, one per topic."""

    credentials: Credentials
    names: Names
    opening: Opening
    files: FileIo
    pages: GuestPages
    attrs: Attributes
    dirs: Directories
    xattrs: ExtendedAttributes
    space: Space
    locks: Locks
    submission: Submission
    objects: FileObjects


def build(ctx: ProcessContext) -> Parts:
    """The objects of a process, each with those that it builds on."""
    credentials = Credentials(ctx)
    access = Access(ctx)
    walk = PathWalk(ctx, access)
    names = Names(ctx, access, walk)
    locks = Locks(ctx)
    transfer = Transfer(ctx, access)
    cached = CachedIo(ctx, access, transfer)
    opening = Opening(ctx, access, walk, names, locks, cached)
    files = FileIo(ctx, access, transfer, cached)
    pages = GuestPages(ctx, access, transfer, cached)
    attrs = Attributes(ctx, credentials, access, walk, cached, opening)
    dirs = Directories(ctx, opening, attrs)
    xattrs = ExtendedAttributes(ctx, access, walk)
    space = Space(ctx, access, transfer, cached)
    submission = Submission(ctx, access, locks, transfer)
    objects = FileObjects(ctx, opening, files, attrs)
    return Parts(
        credentials, names, opening, files, pages, attrs, dirs, xattrs, space, locks, submission, objects
    )


class GuestFs:
    """The calls of one guest process: the objects that carry them out, and their methods under one roof.

    Each object is handed the process (``context``) and those that it builds on; none knows this class. The
    machine re-points the process's kernel, for all processes at once, when a migration commits.
    """

    def __init__(self, cell: KernelCell, pid: int) -> None:
        self.context = ctx = ProcessContext(cell, pid)
        self.pid = pid
        (
            credentials, names, opening, files, pages, attrs, dirs, xattrs, space, locks, submission, objects,
        ) = build(ctx)  # fmt: skip

        self.as_user, self.getresuid = credentials.as_user, credentials.getresuid
        self.getresgid, self.getuid = credentials.getresgid, credentials.getuid
        self.geteuid, self.getgid = credentials.geteuid, credentials.getgid
        self.getegid, self.getgroups = credentials.getegid, credentials.getgroups
        self.capget, self.capset = credentials.capget, credentials.capset
        self.setgroups, self.setresuid = credentials.setgroups, credentials.setresuid
        self.setresgid, self.setuid = credentials.setresgid, credentials.setuid
        self.setgid, self.seteuid = credentials.setgid, credentials.seteuid
        self.setegid = credentials.setegid
        self.setreuid, self.setregid = credentials.setreuid, credentials.setregid

        self.mkdir, self.makedirs = names.mkdir, names.makedirs
        self.mknod, self.mkfifo = names.mknod, names.mkfifo
        self.symlink, self.link = names.symlink, names.link
        self.unlink, self.remove = names.unlink, names.remove
        self.rmdir, self.rename = names.rmdir, names.rename
        self.replace, self.renameat2 = names.replace, names.renameat2
        self.readlink, self.chdir = names.readlink, names.chdir
        self.fchdir, self.getcwd = names.fchdir, names.getcwd
        self.getcwdb, self.umask = names.getcwdb, names.umask

        self.open, self.openat = opening.open, opening.openat
        self.close, self.dup = opening.close, opening.dup
        self.dup2 = opening.dup2

        self.read, self.pread, self.readv, self.preadv = files.read, files.pread, files.readv, files.preadv
        self.write, self.pwrite = files.write, files.pwrite
        self.writev, self.pwritev = files.writev, files.pwritev
        self.lseek, self.fsync = files.lseek, files.fsync
        self.fdatasync, self.sync = files.fdatasync, files.sync

        self.alloc_guest, self.free_guest = pages.alloc_guest, pages.free_guest
        self.pread_guest, self.pwrite_guest = pages.pread_guest, pages.pwrite_guest

        self.stat, self.lstat, self.fstat, self.chmod = attrs.stat, attrs.lstat, attrs.fstat, attrs.chmod
        self.fchmod, self.chown = attrs.fchmod, attrs.chown
        self.lchown, self.fchown = attrs.lchown, attrs.fchown
        self.truncate, self.ftruncate = attrs.truncate, attrs.ftruncate
        self.utime, self.statvfs = attrs.utime, attrs.statvfs
        self.fstatvfs, self.access = attrs.fstatvfs, attrs.access

        self.getdents, self.scandir = dirs.getdents, dirs.scandir
        self.listdir, self.walk = dirs.listdir, dirs.walk

        self.getxattr, self.listxattr = xattrs.getxattr, xattrs.listxattr
        self.setxattr, self.removexattr = xattrs.setxattr, xattrs.removexattr

        self.posix_fallocate, self.fallocate = space.posix_fallocate, space.fallocate
        self.copy_file_range, self.ioctl = space.copy_file_range, space.ioctl

        self.lockf, self.flock, self.setlk, self.getlk = locks.lockf, locks.flock, locks.setlk, locks.getlk
        self.interrupt = locks.interrupt

        self.submit_read, self.submit_write = submission.submit_read, submission.submit_write
        self.submit_stat, self.submit_lock = submission.submit_stat, submission.submit_lock
        self.done, self.result = submission.done, submission.result

        self.open_file = objects.open_file

    @property
    def kernel(self) -> GuestKernel:
        """The kernel that runs the process, once it runs."""
        return self.context.kernel

    @property
    def process(self) -> Process:
        """The process; StateError when it has exited."""
        return self.context.process

    def fork(self) -> GuestFs:
        """A new process with copies of our descriptors, working directory, credentials and umask."""
        kernel = self.context.running()
        parent = self.process
        pid = max(kernel.state.processes) + 1
        for number in parent.fds.values():
            kernel.state.files[number].refs += 1
        kernel.nodes.hold(parent.cwd)
        kernel.state.processes[pid] = msgspec.structs.replace(
            parent, pid=pid, groups=list(parent.groups), fds=dict(parent.fds)
        )
        return GuestFs(self.context.cell, pid)

    def exit(self) -> None:
        """End the process: all its descriptors are closed."""
        for fd in list(self.process.fds):
            try:
                self.close(fd)
            except OSError:
                pass  # nobody is left to be told
        kernel = self.context.running()
        process = kernel.state.processes.pop(self.pid)
        kernel.state.interrupts.pop(self.pid, None)
        kernel.nodes.drop(process.cwd)
        for request in [request for request in kernel.requests.values() if request.pid == self.pid]:
            kernel.abandon(request.unique)  # submitted, and never asked for

    def drop_caches(self) -> None:
        """Write out what is dirty, then drop pages and dentries, and tell the server what we forget."""
        self.sync()
        kernel = self.context.running()
        if kernel.pages is not None:
            for nodeid in kernel.pages.cached_nodes():
                kernel.pages.drop_clean(nodeid)
        kernel.inodes.shrink_dentries()
        kernel.flush_forgets()

    def __repr__(self) -> str:
        return f"GuestFs(pid {self.pid})"


def mount(kernel: GuestKernel, pid: int = 1) -> GuestFs:
    """The calls of process ``pid``; one that does not exist begins at the root, as user 0."""
    if pid not in kernel.state.processes:
        if pid <= 0 or pid >= 1 << 31:
            raise UsageError(f"{pid} is not a process id")
        kernel.nodes.hold(FUSE_ROOT_ID)
        kernel.state.processes[pid] = Process(pid, FUSE_ROOT_ID)
    return GuestFs(kernel.cell, pid)
