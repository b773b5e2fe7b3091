"""Commands that look at files and directories."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from vmsim.cli.common import human_bytes, printable
from vmsim.cli.shell.command import Session, ShellError, arguments, command, flags, number
from vmsim.guest.calls.posix import GuestFs

PIECE: Final = 1 << 20
HEAD_LINES: Final = 10


def link_target(fs: GuestFs, path: str) -> str:
    """Where a symlink points."""
    return os.fsdecode(fs.readlink(path))


def _line(fs: GuestFs, path: str, name: str) -> str:
    status = fs.lstat(path)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
    arrow = f" -> {printable(link_target(fs, path))}" if stat.S_ISLNK(status.st_mode) else ""
    return (
        f"{stat.filemode(status.st_mode)} {status.st_nlink:>3} {status.st_uid:>5} {status.st_gid:>5} "
        f"{status.st_size:>10} {when} {printable(name)}{arrow}"
    )


@command("ls [-lad] [PATH...]", "list; -l: attributes, -a: hidden names too, -d: directories themselves")
def ls(session: Session, words: list[str]) -> None:
    """List; names are escaped where a terminal would be confused."""
    options, paths = flags("ls", words, "lad")
    fs = session.fs
    for path in paths or ["."]:
        look = fs.lstat if "l" in options else fs.stat
        is_folder = "d" not in options and stat.S_ISDIR(look(path).st_mode)
        if is_folder and len(paths) > 1:
            session.say(f"{printable(path)}:")
        names = sorted(fs.listdir(path)) if is_folder else [path]
        for name in names:
            if name.startswith(".") and is_folder and "a" not in options:
                continue
            full = os.path.join(path, name) if is_folder else name
            session.say(_line(fs, full, name) if "l" in options else printable(name))


@command("cat FILE...", "print files")
def cat(session: Session, words: list[str]) -> None:
    """Print, as it is."""
    for path in arguments("cat", words, 1):
        data = b""
        with session.fs.open_file(path, "rb") as file:
            while data_next := file.read(PIECE):
                session.write(data)
                data = data_next
        session.show(data)


@command("head [-n LINES] FILE...", f"print the first lines of files (default: {HEAD_LINES})")
def head(session: Session, words: list[str]) -> None:
    """Print the beginning."""
    lines = HEAD_LINES
    if words[:1] == ["-n"]:
        lines = number(arguments("head", words, 3)[1], "LINES")
        words = words[2:]
    for path in arguments("head", words, 1):
        with session.fs.open_file(path, "rb") as file:
            for _ in range(lines):
                line = file.readline(PIECE)
                if not line:
                    break
                session.show(line)


@command("stat PATH...", "attributes")
def show_stat(session: Session, words: list[str]) -> None:
    """Print attributes."""
    for path in arguments("stat", words, 1):
        status = session.fs.lstat(path)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.st_mtime))
        session.say(
            f"{printable(path)}: {stat.filemode(status.st_mode)} inode {status.st_ino}, "
            f"{status.st_size} bytes, {status.st_nlink} links, uid {status.st_uid}, gid {status.st_gid}, "
            f"modified {when}"
        )


@command("readlink NAME", "where a symlink points")
def readlink(session: Session, words: list[str]) -> None:
    """Print the target."""
    session.say(printable(link_target(session.fs, arguments("readlink", words, 1, 1)[0])))


@command("find [PATH...]", "all names below, one per line")
def find(session: Session, words: list[str]) -> None:
    """Walk, without following symlinks."""
    for path in words or ["."]:
        session.fs.lstat(path)
        session.say(printable(path))
        for below, _ in _walk(session.fs, path):
            session.say(printable(below))


@command("tree [PATH]", "all names below, as a tree")
def tree(session: Session, words: list[str]) -> None:
    """Walk, indented."""
    path = (arguments("tree", words, 0, 1) or ["."])[0]
    session.fs.lstat(path)
    session.say(printable(path))
    counts = [0, 0]
    for below, depth in _walk(session.fs, path):
        status = session.fs.lstat(below)
        is_folder = stat.S_ISDIR(status.st_mode)
        counts[is_folder] += 1
        mark = "/" if is_folder else ""
        if stat.S_ISLNK(status.st_mode):
            mark = f" -> {printable(link_target(session.fs, below))}"
        session.say(f"{'│   ' * depth}├── {printable(os.path.basename(below))}{mark}")
    session.say(f"{counts[1]} directories, {counts[0]} files")


def _walk(fs: GuestFs, path: str) -> Iterator[tuple[str, int]]:
    """Everything below with its depth, a folder before what is in it."""
    pending = [(path, -1)]
    while pending:
        folder, level = pending.pop()
        if level >= 0:
            yield folder, level
        try:
            is_folder = stat.S_ISDIR(fs.lstat(folder).st_mode)
            names = sorted(fs.listdir(folder), reverse=True) if is_folder else []
        except FileNotFoundError:
            continue
        pending += [(os.path.join(folder, name), level + 1) for name in names]


@command("df", "space of the file system")
def df(session: Session, words: list[str]) -> None:
    """Print sizes."""
    arguments("df", words, 0, 0)
    space = session.fs.statvfs("/")
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    session.say(f"{human_bytes(size)} in all, {human_bytes(free)} available, {space.f_ffree} inodes free")


@command("cd [PATH]", "change the working directory")
def cd(session: Session, words: list[str]) -> None:
    """Change the working directory."""
    session.fs.chdir((arguments("cd", words, 0, 1) or ["/"])[0])


@command("pwd", "the working directory")
def pwd(session: Session, words: list[str]) -> None:
    """Print it."""
    session.say(printable(session.fs.getcwd()))


@command("xattr PATH [NAME [VALUE]]", "list, print or set extended attributes")
def xattr(session: Session, words: list[str]) -> None:
    """Extended attributes."""
    path, *rest = arguments("xattr", words, 1, 3)
    fs = session.fs
    if len(rest) == 2:
        fs.setxattr(path, rest[0], os.fsencode(rest[1]))
    elif rest:
        session.show(fs.getxattr(path, rest[0]))
    else:
        for name in fs.listxattr(path):
            session.say(printable(name))


def target_of(fs: GuestFs, source: str, target: str) -> str:
    """``target``, or the name of ``source`` in it if it is a directory."""
    name = os.path.basename(source.rstrip("/"))
    if is_directory(fs, target):
        if not name or name in (".", ".."):
            raise ShellError(f"{source}: which name shall it have in {target}?")
        return os.path.join(target, name)
    return target


def is_directory(fs: GuestFs, path: str) -> bool:
    """Whether it is one, perhaps through a symlink."""
    try:
        return stat.S_ISDIR(fs.stat(path).st_mode)
    except FileNotFoundError:
        return False
