"""Commands that change files and directories."""

from __future__ import annotations

import os
import stat

from vmsim.cli.shell.command import Session, ShellError, arguments, command, flags, number
from vmsim.cli.shell.files import PIECE, is_directory, link_target, target_of
from vmsim.guest.calls.posix import GuestFs


@command("echo [-n] [TEXT...]", "print a line; with > FILE or >> FILE (after any command) into a file")
def echo(session: Session, words: list[str]) -> None:
    """Print."""
    bare = words[:1] == ["-n"]
    text = " ".join(words[1:] if bare else words)
    session.write(text.encode("utf-8", "surrogateescape") + (b"" if bare else b"\n"))


@command("cp [-r] SOURCE... TARGET", "copy files, with -r directories and all that is in them")
def cp(session: Session, words: list[str]) -> None:
    """Copy contents and modes; symlinks as such with -r."""
    options, words = flags("cp", words, "r")
    *sources, target = arguments("cp", words, 2)
    fs = session.fs
    _check_many(fs, sources, target)
    for source in sources:
        _copy(fs, source, target_of(fs, source, target), "r" in options)


def _copy(fs: GuestFs, source: str, target: str, recursive: bool) -> None:
    status = fs.lstat(source) if recursive else fs.stat(source)
    if stat.S_ISDIR(status.st_mode):
        if not recursive:
            raise ShellError(f"{source} is a directory; use cp -r")
        names = fs.listdir(source)
        if not is_directory(fs, target):
            fs.mkdir(target)
        for name in names:
            _copy(fs, os.path.join(source, name), os.path.join(target, name), recursive)
    elif stat.S_ISLNK(status.st_mode):
        fs.symlink(link_target(fs, source), target)
        return
    else:
        _copy_content(fs, source, target)
    fs.chmod(target, stat.S_IMODE(status.st_mode))


def _copy_content(fs: GuestFs, source: str, target: str) -> None:
    if os.path.samestat(fs.stat(source), _status_or(fs, target)):
        raise ShellError(f"{source} and {target} are the same file")
    with fs.open_file(source, "rb") as read, fs.open_file(target, "wb") as write:
        while piece := read.read(PIECE):
            write.write(piece)


def _status_or(fs: GuestFs, path: str) -> os.stat_result:
    try:
        return fs.stat(path)
    except FileNotFoundError:
        return os.stat_result([0] * 10)


@command("mv SOURCE... TARGET", "rename, into TARGET if it is a directory")
def mv(session: Session, words: list[str]) -> None:
    """Rename."""
    *sources, target = arguments("mv", words, 2)
    _check_many(session.fs, sources, target)
    for source in sources:
        session.fs.rename(source, target_of(session.fs, source, target))


def _check_many(fs: GuestFs, sources: list[str], target: str) -> None:
    if len(sources) > 1 and not is_directory(fs, target):
        raise ShellError(f"{target} is not a directory")


@command("rm [-rf] PATH...", "remove files; -r: directories and all that is in them, -f: no complaint")
def rm(session: Session, words: list[str]) -> None:
    """Remove."""
    options, paths = flags("rm", words, "rf")
    for path in arguments("rm", paths, 1):
        try:
            if "r" in options:
                _remove_tree(session.fs, path)
            else:
                session.fs.unlink(path)
        except FileNotFoundError:
            if "f" not in options:
                raise


def _remove_tree(fs: GuestFs, path: str) -> None:
    if not stat.S_ISDIR(fs.lstat(path).st_mode):
        fs.unlink(path)
        return
    for name in fs.listdir(path):
        _remove_tree(fs, os.path.join(path, name))
    if os.path.basename(path.rstrip("/")) not in ("", ".", ".."):
        fs.rmdir(path)


@command("mkdir [-p] PATH...", "make directories, with -p those on the way, too")
def mkdir(session: Session, words: list[str]) -> None:
    """Make directories."""
    options, paths = flags("mkdir", words, "p")
    for path in arguments("mkdir", paths, 1):
        if "p" in options:
            session.fs.makedirs(path, exist_ok=True)
        else:
            session.fs.mkdir(path)


@command("rmdir PATH...", "remove empty directories")
def rmdir(session: Session, words: list[str]) -> None:
    """Remove empty directories."""
    for path in arguments("rmdir", words, 1):
        session.fs.rmdir(path)


@command("ln [-s] TARGET NAME", "make a hard link, with -s a symlink")
def ln(session: Session, words: list[str]) -> None:
    """Link."""
    options, words = flags("ln", words, "s")
    target, name = arguments("ln", words, 2, 2)
    name = target_of(session.fs, target, name)
    if "s" in options:
        session.fs.symlink(target, name)
    else:
        session.fs.link(target, name)


@command("touch FILE...", "make empty files, or set their times to now")
def touch(session: Session, words: list[str]) -> None:
    """Create or update."""
    for path in arguments("touch", words, 1):
        if not is_directory(session.fs, path):
            session.fs.close(session.fs.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        session.fs.utime(path)


@command("chmod MODE PATH...", "change permissions; MODE is octal")
def chmod(session: Session, words: list[str]) -> None:
    """Change permissions."""
    mode, *paths = arguments("chmod", words, 2)
    bits = number(mode, "MODE", 8)
    for path in paths:
        session.fs.chmod(path, bits)


@command("chown UID[:GID] PATH...", "change owner and group; numbers")
def chown(session: Session, words: list[str]) -> None:
    """Change the owner."""
    owner, *paths = arguments("chown", words, 2)
    uid, _, gid = owner.partition(":")
    for path in paths:
        session.fs.chown(path, number(uid or "-1", "UID"), number(gid or "-1", "GID"))


@command("truncate SIZE FILE...", "set the size of files")
def truncate(session: Session, words: list[str]) -> None:
    """Change the size."""
    size, *paths = arguments("truncate", words, 2)
    for path in paths:
        session.fs.truncate(path, number(size, "SIZE"))


@command("sync", "write everything back")
def sync(session: Session, words: list[str]) -> None:
    """Write back."""
    session.fs.sync()
