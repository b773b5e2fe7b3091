"""Commands that keep files open: descriptors have numbers, and survive a migration."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from vmsim.cli.common import printable
from vmsim.cli.shell.command import Session, ShellError, arguments, command, flags, number

MODES: Final = {
    "r": os.O_RDONLY, "r+": os.O_RDWR, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "a+": os.O_RDWR | os.O_CREAT | os.O_APPEND, "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "x+": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}  # fmt: skip
READ_BYTES: Final = 4096
WHENCE: Final = {"set": os.SEEK_SET, "cur": os.SEEK_CUR, "end": os.SEEK_END}


@command("open PATH [MODE]", "open a file and keep it open; MODE: r (default), r+, w, w+, a, a+, x, x+")
def open_file(session: Session, words: list[str]) -> None:
    """Open; prints the descriptor."""
    path, *mode = arguments("open", words, 1, 2)
    name = mode[0] if mode else "r"
    if name not in MODES:
        raise ShellError(f"no mode {name!r}: one of {', '.join(MODES)}")
    fd = session.fs.open(path, MODES[name], 0o666)
    session.note(fd, path)
    session.say(f"{fd}")


@command("read FD [BYTES]", f"print what is at the descriptor's offset (default: up to {READ_BYTES})")
def read(session: Session, words: list[str]) -> None:
    """Read."""
    fd, *size = arguments("read", words, 1, 2)
    session.show(session.fs.read(number(fd, "FD"), number(size[0], "BYTES") if size else READ_BYTES))


@command("write [-n] FD TEXT...", "write a line at the descriptor's offset, with -n without its end")
def write(session: Session, words: list[str]) -> None:
    """Write."""
    options, words = flags("write", words, "n")
    fd, *text = arguments("write", words, 2)
    data = " ".join(text).encode("utf-8", "surrogateescape") + (b"" if "n" in options else b"\n")
    while data:
        data = data[session.fs.write(number(fd, "FD"), data) :]


@command("seek FD OFFSET [set|cur|end]", "move the descriptor's offset; prints the new one")
def seek(session: Session, words: list[str]) -> None:
    """Move the offset."""
    fd, offset, *how = arguments("seek", words, 2, 3)
    if how and how[0] not in WHENCE:
        raise ShellError(f"{how[0]!r} is not set, cur or end")
    whence = WHENCE[how[0]] if how else os.SEEK_SET
    session.say(str(session.fs.lseek(number(fd, "FD"), number(offset, "OFFSET"), whence)))


@command("lock FD", "take an exclusive lock (flock) without waiting")
def lock(session: Session, words: list[str]) -> None:
    """Lock."""
    fd = number(arguments("lock", words, 1, 1)[0], "FD")
    session.fs.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@command("unlock FD", "give it back")
def unlock(session: Session, words: list[str]) -> None:
    """Unlock."""
    session.fs.flock(number(arguments("unlock", words, 1, 1)[0], "FD"), fcntl.LOCK_UN)


@command("close FD...", "close descriptors")
def close(session: Session, words: list[str]) -> None:
    """Close."""
    for word in arguments("close", words, 1):
        fd = number(word, "FD")
        session.fs.close(fd)
        session.note(fd, None)


@command("fds", "open descriptors with their offsets")
def fds(session: Session, words: list[str]) -> None:
    """List them as the guest's kernel knows them."""
    arguments("fds", words, 0, 0)
    fs, paths = session.fs, session.paths
    files = fs.kernel.state.files
    for fd, index in sorted(fs.process.fds.items()):
        file = files[index]
        locked = ", locked" if file.flocked else ""
        session.say(
            f"{fd}  {printable(paths.get(fd, '?'))}  offset {file.offset}, flags {file.flags:#o}, "
            f"node {file.nodeid}{locked}"
        )
