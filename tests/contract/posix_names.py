"""Checks of the facade against ``os``: names, directories, file objects, locks, processes."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat

import pytest

from tests.support.posix_both import P

# -- names


def check_mkdir_rmdir(both):
    both.mkdir(P("d"))
    both.mkdir(P("d"))
    both.mkdir(P("d/"))
    both.mkdir(P("e/"))
    both.mkdir(P("d/x/y"))
    both.mkdir(P("d/x"))
    both.rmdir(P("d"))
    both.rmdir(P("d/x/"))
    both.rmdir(P("d/."))
    both.rmdir(P("d/e/.."))
    both.rmdir(P("d/.."))
    both.rmdir(P("none"))
    both.make("f")
    both.rmdir(P("f"))
    both.mkdir(P("f/x"))
    both.unlink(P("d"))
    both.rmdir(P("d"))
    both.mkdir(P("."))
    both.mkdir(P(""))
    both.makedirs(P("a/b/c"))
    both.makedirs(P("a/b/c"))
    both.makedirs(P("a/b/c"), exist_ok=True)
    both.makedirs(P("a/b/d/e/"), exist_ok=True)
    both.listdir(P("a/b"))


def check_unlink(both):
    both.make("f", b"still there")
    fd = both.open(P("f"), os.O_RDWR)
    both.unlink(P("f/"))
    both.unlink(P("f"))
    both.unlink(P("f"))
    assert both.fstat(fd)[2] == 0
    assert both.pread(fd, 100, 0) == b"still there"
    both.write(fd, b"STILL")
    both.ftruncate(fd, 5)
    both.fchmod(fd, 0o600)
    assert both.pread(fd, 100, 0) == b"STILL"
    both.close(fd)
    both.unlink(P("."))
    both.unlink(P(""))


def check_rename(both):
    both.make("a", b"a")
    both.make("b", b"b")
    both.mkdir(P("d"))
    both.mkdir(P("d/inner"))
    both.mkdir(P("e"))
    both.rename(P("a"), P("c"))
    both.rename(P("a"), P("c"))
    both.rename(P("c"), P("b"))
    assert both.content("b") == b"a"
    both.rename(P("b"), P("d"))
    both.rename(P("d"), P("b"))
    both.rename(P("d"), P("d/inner/x"))
    both.rename(P("e"), P("d"))
    both.rename(P("d"), P("e/"))
    assert both.listdir(P("e")) == ["inner"]
    both.rename(P("e/inner"), P("e"))
    both.rename(P("b/"), P("x"))
    both.rename(P("b"), P("x/"))
    both.rename(P("e/."), P("x"))
    both.rename(P("e"), P("e/.."))
    both.rename(P("b"), P("b"))
    both.link(P("b"), P("b2"))
    both.rename(P("b"), P("b2"))
    assert both.listdir(P("")) == ["b", "b2", "e"]
    both.replace(P("b2"), P("e/inner/b"))
    assert both.content("e/inner/b") == b"a"
    both.rename(P("none"), P("other"))


def check_rename_flags(both):
    """renameat2 has no counterpart in ``os``: guest only."""
    fs = both.fs
    for name in "ab":
        fs.close(fs.open(f"/{name}", os.O_CREAT | os.O_WRONLY))
    fs.mkdir("/d")
    with pytest.raises(FileExistsError):
        fs.renameat2("/a", "/b", 1)
    fs.renameat2("/a", "/c", 1)
    inodes = [fs.stat(path).st_ino for path in ("/c", "/d")]
    fs.renameat2("/c", "/d", 2)
    assert [fs.stat(path).st_ino for path in ("/d", "/c")] == inodes
    with pytest.raises(FileNotFoundError):
        fs.renameat2("/c", "/none", 2)
    with pytest.raises(OSError, match="Invalid"):
        fs.renameat2("/c", "/x", 3)
    fs.rmdir("/c")


def check_links(both):
    both.make("f", b"x")
    both.link(P("f"), P("g"))
    both.stat(P("g"))
    both.link(P("f"), P("g"))
    both.link(P("none"), P("h"))
    both.mkdir(P("d"))
    both.link(P("d"), P("d2"))
    both.link(P("f"), P("d/h"))
    both.link(P("f"), P("new/"))
    assert both.stat(P("f"))[2] == 3
    both.unlink(P("g"))
    assert both.stat(P("f"))[2] == 2
    both.symlink("f", P("s"))
    both.link(P("s"), P("s2"))
    both.lstat(P("s2"))
    both.symlink("x" * 4095, P("long"))
    assert both.readlink(P("long")) == "x" * 4095
    both.symlink("x" * 4096, P("longer"))
    both.symlink("", P("empty"))
    both.symlink("f", P("s"))
    both.symlink("f", P("t/"))
    both.readlink(P("f"))
    both.readlink(P("none"))
    both.readlink(P("s/"))
    both.lstat(P("s/"))
    both.symlink("d/", P("to_d"))
    both.lstat(P("to_d/"))
    both.lstat(P("to_d"))
    both.rmdir(P("to_d/"))
    both.rmdir(P("to_d"))
    both.unlink(P("to_d"))


def check_special_files(both):
    both.mkfifo(P("fifo"), 0o600)
    both.stat(P("fifo"))
    both.mknod(P("plain"), 0o640)
    both.stat(P("plain"))
    both.mknod(P("socket"), stat.S_IFSOCK | 0o600)
    both.stat(P("socket"))
    both.mknod(P("fifo"), stat.S_IFIFO | 0o600)
    both.mknod(P("dir"), stat.S_IFDIR | 0o700)
    both.unlink(P("fifo"))


def check_paths(both):
    both.mkdir(P("d"))
    both.make("d/f")
    for path in ("d//f", "./d/./f", "d/../d/f", "d/f/", "d/f/.", "d/f/..", "none/..", "d/", "d/.", ""):
        both.stat(P(path))
        both.lstat(P(path))
    for name in ("blank here", "ünïcode", "new\nline", "x (deleted)", "-", os.fsdecode(b"\xff\xfe")):
        both.make(name, os.fsencode(name))
        assert both.content(name) == os.fsencode(name)
    both.listdir(P(""))
    both.stat("")
    both.stat(P("x" * 255))
    both.stat(P("x" * 256))
    both.mkdir(P("x" * 256))
    both.make("y" * 255)
    both.mkdir(P("é" * 127))
    both.stat(P("/".join(["d"] * 3000)))
    with pytest.raises(ValueError, match="null byte"):
        both.fs.stat("/nul\0byte")
    assert both.fs.stat(b"/d/f").st_size == 0
    assert both.fs.stat("/../../d/f").st_size == 0


def check_containment(both):
    """Symlinks never lead above the mount's root: absolute ones begin there."""
    fs = both.fs
    fs.mkdir("/etc")
    fs.symlink("/etc/passwd", "/absolute")
    fs.symlink("../../../../../../etc/passwd", "/etc/relative")
    with pytest.raises(FileNotFoundError):
        fs.stat("/absolute")
    with fs.open_file("/etc/passwd", "w") as file:
        file.write("the guest's own")
    for path in ("/absolute", "/etc/relative"):
        with fs.open_file(path) as file:
            assert file.read() == "the guest's own"


def check_cwd(both):
    fs = both.fs
    fs.makedirs("/d/e")
    assert fs.getcwd() == "/"
    fs.chdir("d")
    assert fs.getcwd() == "/d"
    fs.mkdir("here")
    assert sorted(fs.listdir()) == ["e", "here"]
    fs.rename("/d", "/moved")
    assert fs.getcwd() == "/moved"
    fs.chdir("e/..")
    fs.chdir("here")
    fs.rmdir("/moved/here")
    with pytest.raises(FileNotFoundError):
        fs.getcwd()
    with pytest.raises(FileNotFoundError):
        fs.mkdir("x")
    fs.chdir("/")
    fs.mknod("/f")
    with pytest.raises(NotADirectoryError) as caught:
        fs.chdir("/f")
    assert caught.value.filename == "/f"
    fd = fs.open("/moved", os.O_RDONLY)
    fs.fchdir(fd)
    fs.close(fd)
    assert fs.getcwd() == "/moved"
    fs.chdir("/")


def check_directories(both):
    both.makedirs(P("t/a/b"))
    both.make("t/f")
    both.symlink("a", P("t/to_a"))
    both.symlink("nowhere", P("t/dangling"))
    both.mkfifo(P("t/p"))
    found = []
    for scan, top in ((both.fs.scandir, "/t"), (os.scandir, both.host_path("t"))):
        with scan(top) as entries:
            found.append(sorted(
                (
                    entry.name, entry.path[len(top):], entry.is_dir(), entry.is_dir(follow_symlinks=False),
                    entry.is_file(), entry.is_symlink(), entry.inode() > 0,
                    entry.stat(follow_symlinks=False).st_mode,
                )
                for entry in entries
            ))
    assert found[0] == found[1]
    trees = [
        sorted((top.removeprefix(root), sorted(dirs), sorted(rest)) for top, dirs, rest in walk(root + "/t"))
        for walk, root in ((both.fs.walk, ""), (os.walk, both.root))
    ]
    assert trees[0] == trees[1]
    both.listdir(P("t"))
    both.listdir(P("t/f"))
    both.listdir(P("none"))
    assert both.fs.listdir(b"/t/a") == [b"b"]
    assert list(both.fs.walk("/t", topdown=False))[-1][0] == "/t"


def check_directory_positions(both):
    """A position taken in a directory leads back to the same entry."""
    fs = both.fs
    fs.mkdir("/many")
    names = {f"name{number:04}" for number in range(500)}
    for name in names:
        fs.mknod(f"/many/{name}")
    fd = fs.open("/many", os.O_RDONLY)
    entries = []
    while batch := fs.getdents(fd, 1024):
        entries += batch
    assert {entry.name for entry in entries} == names | {".", ".."}
    assert len(entries) == 502
    for at in (0, 100, 300):
        fs.lseek(fd, entries[at].offset, os.SEEK_SET)
        assert fs.getdents(fd, 1024)[0].name == entries[at + 1].name
    fs.lseek(fd, 0, os.SEEK_SET)
    assert fs.getdents(fd, 1024)[0].name == entries[0].name
    fs.close(fd)


# -- file objects, locks, processes


def check_file_objects(both):
    file = both.file("text", "w", encoding="utf-8")
    file.write("first\nsecond ünï\n")
    file.close()
    file = both.file("text", encoding="utf-8")
    assert file.readline() == "first\n"
    assert file.tell() == 6
    assert file.read() == "second ünï\n"
    file.seek(0)
    assert file.readlines() == ["first\n", "second ünï\n"]
    file.write("no")
    file.close()
    file = both.file("text", "r+b")
    file.seek(6)
    file.write(b"SECOND")
    file.seek(0)
    file.read()
    file.truncate(8)
    file.close()
    file = both.file("text", "ab")
    file.tell()
    file.write(b"more")
    file.close()
    assert both.content("text") == b"first\nSEmore"
    file = both.file("raw", "wb", buffering=0)
    assert file.write(b"123") == 3
    file.close()
    both.file("raw", "x")
    both.file("none")
    for mode in ("rw", "q", "", "rr"):
        both.file("raw", mode)
    both.mkdir(P("d"))
    both.file("d")
    both.file("d", "w")
    with both.fs.open_file("/text", "rb") as guest:
        assert isinstance(guest, io.BufferedReader)
    with pytest.raises(ValueError, match="closed"):
        guest.read()


def check_flock(both):
    both.make("f")
    one, two = both.open(P("f"), os.O_RDWR), both.open(P("f"), os.O_RDWR)
    both.flock(one, fcntl.LOCK_SH)
    both.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    both.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.flock(two, fcntl.LOCK_UN)
    both.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    both.flock(two, 77)
    both.close(one)
    both.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    both.close(two)


def check_posix_locks(both):
    """Between two processes of the guest; a process never collides with itself."""
    fs = both.fs
    other = fs.fork()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fd2 = other.open("/f", os.O_RDWR)
    fs.lockf(fd, os.F_LOCK, 10)
    fs.lockf(fd, os.F_LOCK, 10)
    with pytest.raises(BlockingIOError):
        other.setlk(fd2, fcntl.F_WRLCK, 5, 10)
    other.setlk(fd2, fcntl.F_WRLCK, 10, 10)
    with pytest.raises(PermissionError):
        other.lockf(fd2, os.F_TEST, 10)
    found = other.getlk(fd2, fcntl.F_RDLCK, 0, 0)
    assert (found.kind, found.start, found.length) == (fcntl.F_WRLCK, 0, 10)
    fs.setlk(fd, fcntl.F_UNLCK, 3, 2)
    other.setlk(fd2, fcntl.F_WRLCK, 3, 2)
    with pytest.raises(BlockingIOError):
        other.setlk(fd2, fcntl.F_RDLCK, 5, 1)
    fs.close(fs.dup(fd))
    other.setlk(fd2, fcntl.F_WRLCK, 0, 0)
    fs.close(fd)
    other.exit()


def check_umount_of_names(both):
    """OSError tells which file, as it was given."""
    for path in ("/none", b"/none"):
        with pytest.raises(FileNotFoundError) as caught:
            both.fs.stat(path)
        assert caught.value.filename == path
    with pytest.raises(FileNotFoundError) as caught:
        both.fs.rename("/none", "/other")
    assert (caught.value.filename, caught.value.filename2) == ("/none", "/other")


def check_permissions(both):
    """Another user is held to the mode bits."""
    fs = both.fs
    fs.mkdir("/private", 0o700)
    fs.close(fs.open("/private/f", os.O_CREAT | os.O_WRONLY))
    fs.close(fs.open("/ro", os.O_CREAT | os.O_WRONLY, 0o644))
    fs.close(fs.open("/secret", os.O_CREAT | os.O_WRONLY, 0o600))
    fs.mkdir("/sticky")
    fs.chmod("/sticky", 0o1777)
    fs.mknod("/sticky/rooted", 0o666)
    with fs.as_user(1234, 1234):
        for call, args in (
            (fs.stat, ("/private/f",)), (fs.open, ("/ro", os.O_WRONLY)), (fs.open, ("/secret", os.O_RDONLY)),
            (fs.mkdir, ("/new",)), (fs.unlink, ("/ro",)), (fs.listdir, ("/private",)),
            (fs.truncate, ("/ro", 0)),
        ):  # fmt: skip
            with pytest.raises(PermissionError) as caught:
                call(*args)
            assert caught.value.errno == errno.EACCES
        for call, args in (
            (fs.chmod, ("/ro", 0)), (fs.chown, ("/ro", 1234, -1)), (fs.unlink, ("/sticky/rooted",)),
        ):  # fmt: skip
            with pytest.raises(PermissionError) as caught:
                call(*args)
            assert caught.value.errno == errno.EPERM
        assert not fs.access("/ro", os.W_OK)
        assert fs.access("/ro", os.R_OK)
        fs.close(fs.open("/ro", os.O_RDONLY))
    fs.truncate("/ro", 0)
