"""What a command of the shell is, and the session in which it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any, Final, NamedTuple

import msgspec

from vmsim.guest.calls.posix import GuestFs
from vmsim.machine import Machine

NOTE: Final = "shell"


class ShellError(Exception):
    """A command was used wrongly."""


class ShellExit(Exception):
    """The shell ends with ``status``; None: with that of its commands."""

    def __init__(self, status: int | None = None) -> None:
        super().__init__(status)
        self.status = status


class Session:
    """The machine that the shell is in; ``migrate`` puts another in its place.

    ``out`` is where the present command's output goes: a file of the guest, or None for standard output.
    ``temporary``: the share is removed when the shell ends.
    """

    def __init__(self, machine: Machine, *, temporary: bool = False) -> None:
        self.machine = machine
        self.temporary = temporary
        self.out: IO[Any] | None = None

    @property
    def fs(self) -> GuestFs:
        """The guest's view of the share."""
        return self.machine.mount()

    @property
    def paths(self) -> dict[int, str]:
        """What was opened as which descriptor; it travels with the machine."""
        return msgspec.msgpack.decode(self.machine.programs.get(NOTE, b"\x80"), type=dict[int, str])

    def note(self, fd: int, path: str | None) -> None:
        """Descriptor ``fd`` is ``path`` now, or closed."""
        paths = self.paths
        paths.pop(fd, None)
        if path is not None:
            paths[fd] = path.encode("utf-8", "backslashreplace").decode()
        self.machine.programs[NOTE] = msgspec.msgpack.encode(paths)

    def say(self, text: str) -> None:
        """One line of output."""
        self.write(text.encode("utf-8", "surrogateescape") + b"\n")

    def show(self, data: bytes) -> None:
        """Content: as it is into a file, ended by a line break on standard output."""
        self.write(data if self.out is not None or data.endswith(b"\n") or not data else data + b"\n")

    def write(self, data: bytes) -> None:
        """Output as it is."""
        if self.out is not None:
            self.out.write(data)
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def close(self) -> None:
        """End the machine."""
        self.machine.close()


Run = Callable[[Session, list[str]], None]


class Command(NamedTuple):
    """One command: its arguments and what it does, for help."""

    usage: str
    help: str
    run: Run


COMMANDS: Final[dict[str, Command]] = {}
"""All commands by name, in the order of help."""


def command(usage: str, text: str) -> Callable[[Run], Run]:
    """Register a command under the first word of its usage."""

    def register(run: Run) -> Run:
        COMMANDS[usage.split()[0]] = Command(usage, text, run)
        return run

    return register


def arguments(name: str, words: list[str], least: int = 0, most: int | None = None) -> list[str]:
    """The words if there are as many as ``name`` takes; ShellError tells its usage."""
    if len(words) < least or (most is not None and len(words) > most):
        raise ShellError(f"usage: {COMMANDS[name].usage}")
    return words


def flags(name: str, words: list[str], known: str) -> tuple[set[str], list[str]]:
    """One-letter options in front, and the other words; ``--`` ends the options."""
    found: set[str] = set()
    for at, word in enumerate(words):
        if word == "--":
            return found, words[at + 1 :]
        if not word.startswith("-") or word == "-":
            return found, words[at:]
        found |= set(word[1:])
        if not found <= set(known):
            raise ShellError(f"no option {word}; usage: {COMMANDS[name].usage}")
    return found, []


def number(text: str, what: str, base: int = 10) -> int:
    """A number of the command line."""
    try:
        return int(text, base)
    except ValueError:
        kind = "an octal number" if base == 8 else "a number"
        raise ShellError(f"{text!r} is not {kind}: {what}") from None
