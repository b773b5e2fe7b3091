"""Every call of a guest's facade, made by a program on the tree that ``plant`` puts down."""

from __future__ import annotations

import fcntl
import os

SIZE = 3 * 4096 + 100
TREE = ("d", "d/e", "empty", "f", "d/a", "d/b", "link", "to d")


def plant(share):
    """Directories, files and links for the calls to work on."""
    (share / "d/e").mkdir(parents=True)
    (share / "empty").mkdir()
    for name in ("f", "d/a", "d/b"):
        (share / name).write_bytes(bytes(range(256)) * (SIZE // 256 + 1))
        os.truncate(share / name, SIZE)
    os.setxattr(share / "d/a", "user.x", b"1")
    (share / "link").symlink_to("d/a")
    (share / "to d").symlink_to("/d")


CALLS = {}
"""What to do, by name: the method's, and after a comma what is special. All take (fs, fd, other, directory):
the program's calls, /f and /d/b open for reading and writing, and the directory /d open."""


def call(name):
    """Enter a call, or several lines of them, into the table."""

    def enter(act):
        CALLS[name] = act
        return act

    return enter


call("mkdir")(lambda fs, fd, other, at: fs.mkdir("/d/x"))
call("makedirs")(lambda fs, fd, other, at: fs.makedirs("/d/x/y"))
call("mknod")(lambda fs, fd, other, at: fs.mknod("/d/x"))
call("mkfifo")(lambda fs, fd, other, at: fs.mkfifo("/d/x"))
call("symlink")(lambda fs, fd, other, at: fs.symlink("f", "/d/x"))
call("link")(lambda fs, fd, other, at: fs.link("/f", "/d/x"))
call("link, through a link")(lambda fs, fd, other, at: fs.link("link", "x", src_dir_fd=at, dst_dir_fd=at))
call("unlink")(lambda fs, fd, other, at: fs.unlink("/d/a"))
call("unlink, open")(lambda fs, fd, other, at: fs.unlink("/d/b"))
call("rmdir")(lambda fs, fd, other, at: fs.rmdir("/empty"))
call("rename")(lambda fs, fd, other, at: fs.rename("/d/a", "/empty/x"))
call("rename, over a file")(lambda fs, fd, other, at: fs.rename("/d/a", "/f"))
call("rename, a directory")(lambda fs, fd, other, at: fs.rename("/d/e", "/empty"))
call("renameat2")(lambda fs, fd, other, at: fs.renameat2("/d/a", "/f", 2))
call("readlink")(lambda fs, fd, other, at: fs.readlink("/link"))
call("chdir")(lambda fs, fd, other, at: fs.chdir("/to d"))
call("fchdir")(lambda fs, fd, other, at: fs.fchdir(at))

call("open")(lambda fs, fd, other, at: fs.open("/link", os.O_RDWR))
call("open, O_CREAT")(lambda fs, fd, other, at: fs.open("/d/x", os.O_CREAT | os.O_RDWR))
call("open, O_TRUNC")(lambda fs, fd, other, at: fs.open("/f", os.O_TRUNC | os.O_RDWR))
call("open, O_TMPFILE")(lambda fs, fd, other, at: fs.open("/d", os.O_TMPFILE | os.O_RDWR))
call("open, O_DIRECTORY")(lambda fs, fd, other, at: fs.open("/to d", os.O_DIRECTORY))
call("open, O_PATH")(lambda fs, fd, other, at: fs.open("/f", os.O_PATH))
call("openat")(lambda fs, fd, other, at: fs.openat(at, "a", os.O_RDONLY))
call("close")(lambda fs, fd, other, at: fs.close(fd))
call("close, a directory")(lambda fs, fd, other, at: fs.close(at))
call("dup2")(lambda fs, fd, other, at: fs.dup2(fd, other))
call("exit")(lambda fs, fd, other, at: fs.exit())
call("drop_caches")(lambda fs, fd, other, at: fs.drop_caches())

call("read")(lambda fs, fd, other, at: fs.read(fd, 5000))
call("pread")(lambda fs, fd, other, at: fs.pread(fd, 5000, 100))
call("readv")(lambda fs, fd, other, at: fs.readv(fd, [bytearray(100), bytearray(5000)]))
call("preadv")(lambda fs, fd, other, at: fs.preadv(fd, [bytearray(100), bytearray(5000)], 100))
call("write")(lambda fs, fd, other, at: fs.write(fd, b"new" * 2000))
call("pwrite")(lambda fs, fd, other, at: fs.pwrite(fd, b"new" * 2000, SIZE - 100))
call("writev")(lambda fs, fd, other, at: fs.writev(fd, [b"new" * 2000, b"more"]))
call("pwritev")(lambda fs, fd, other, at: fs.pwritev(fd, [b"new" * 2000, b"more"], 100))
call("lseek")(lambda fs, fd, other, at: fs.lseek(fd, 0, os.SEEK_HOLE))


@call("fsync")
def fsync(fs, fd, other, at):
    fs.write(fd, b"new" * 2000)
    fs.fsync(fd)


@call("fdatasync")
def fdatasync(fs, fd, other, at):
    fs.write(fd, b"new" * 2000)
    fs.fdatasync(fd)


@call("sync")
def sync(fs, fd, other, at):
    fs.write(fd, b"new" * 2000)
    fs.sync()


@call("close, after a write")
def close_dirty(fs, fd, other, at):
    fs.write(fd, b"new" * 2000)
    fs.close(fd)


@call("pread_guest")
def pread_guest(fs, fd, other, at):
    gpa = fs.alloc_guest(8192)
    try:
        fs.pread_guest(fd, [(gpa, 8192)], 0)
    finally:
        fs.free_guest(gpa, 8192)


@call("pwrite_guest")
def pwrite_guest(fs, fd, other, at):
    gpa = fs.alloc_guest(8192)
    try:
        fs.pwrite_guest(fd, [(gpa, 8192)], 0)
    finally:
        fs.free_guest(gpa, 8192)


call("stat")(lambda fs, fd, other, at: fs.stat("/to d/a"))
call("lstat")(lambda fs, fd, other, at: fs.lstat("/link"))
call("fstat")(lambda fs, fd, other, at: fs.fstat(fd))
call("chmod")(lambda fs, fd, other, at: fs.chmod("/d/a", 0o600))
call("fchmod")(lambda fs, fd, other, at: fs.fchmod(fd, 0o600))
call("chown")(lambda fs, fd, other, at: fs.chown("/d/a", os.getuid(), os.getgid()))
call("lchown")(lambda fs, fd, other, at: fs.lchown("/link", os.getuid(), os.getgid()))
call("fchown")(lambda fs, fd, other, at: fs.fchown(fd, os.getuid(), os.getgid()))
call("truncate")(lambda fs, fd, other, at: fs.truncate("/f", 50))
call("ftruncate")(lambda fs, fd, other, at: fs.ftruncate(fd, SIZE * 2))
call("utime")(lambda fs, fd, other, at: fs.utime("/f", (1, 2)))
call("statvfs")(lambda fs, fd, other, at: fs.statvfs("/d"))
call("fstatvfs")(lambda fs, fd, other, at: fs.fstatvfs(fd))
call("access")(lambda fs, fd, other, at: fs.access("/d/a", os.R_OK))

call("getdents")(lambda fs, fd, other, at: fs.getdents(at))
call("listdir")(lambda fs, fd, other, at: fs.listdir("/d"))
call("listdir, of a descriptor")(lambda fs, fd, other, at: fs.listdir(at))
call("scandir")(lambda fs, fd, other, at: [entry.stat() for entry in fs.scandir("/")])
call("walk")(lambda fs, fd, other, at: list(fs.walk("/")))

call("getxattr")(lambda fs, fd, other, at: fs.getxattr("/d/a", "user.x"))
call("listxattr")(lambda fs, fd, other, at: fs.listxattr("/d/a"))
call("setxattr")(lambda fs, fd, other, at: fs.setxattr("/d/a", "user.y", b"1"))
call("removexattr")(lambda fs, fd, other, at: fs.removexattr("/d/a", "user.x"))

call("posix_fallocate")(lambda fs, fd, other, at: fs.posix_fallocate(fd, SIZE, 5000))
call("fallocate")(lambda fs, fd, other, at: fs.fallocate(fd, 3, 0, 4096))
call("copy_file_range")(lambda fs, fd, other, at: fs.copy_file_range(other, fd, 4000))
call("ioctl")(lambda fs, fd, other, at: fs.ioctl(fd, 0x80086601, bytes(8)))

call("lockf")(lambda fs, fd, other, at: fs.lockf(fd, os.F_LOCK, 10))
call("flock")(lambda fs, fd, other, at: fs.flock(fd, fcntl.LOCK_EX))
call("setlk")(lambda fs, fd, other, at: fs.setlk(fd, fcntl.F_WRLCK, 0, 10))
call("getlk")(lambda fs, fd, other, at: fs.getlk(fd, fcntl.F_WRLCK, 0, 10))

call("submit_read")(lambda fs, fd, other, at: fs.result(fs.submit_read(fd, 100, 0)))
call("submit_write")(lambda fs, fd, other, at: fs.result(fs.submit_write(fd, b"new", 0)))
call("submit_stat")(lambda fs, fd, other, at: fs.result(fs.submit_stat(fd)))
call("submit_lock")(lambda fs, fd, other, at: fs.result(fs.submit_lock(fd, fcntl.F_WRLCK, 0, 10)))


@call("open_file")
def open_file(fs, fd, other, at):
    with fs.open_file("/d/a", "r+b") as file:
        file.read(10)
        file.write(b"new")


@call("open_file, appending")
def append(fs, fd, other, at):
    with fs.open_file("/d/x", "ab") as file:
        file.write(b"new" * 2000)


ELSEWHERE = {
    "remove": "unlink", "replace": "rename", "alloc_guest": "pread_guest", "free_guest": "pread_guest",
    "done": "submit_read", "result": "submit_read",
}  # fmt: skip
"""Other names, and what is part of another call."""
QUIET = {
    "as_user", "getresuid", "getresgid", "getuid", "geteuid", "getgid", "getegid", "getgroups", "capget",
    "capset", "setgroups", "setresuid", "setresgid", "setuid", "setgid", "seteuid", "setegid", "setreuid",
    "setregid", "getcwd", "getcwdb", "umask", "dup", "interrupt", "fork",
}  # fmt: skip
"""Calls that ask nobody."""
