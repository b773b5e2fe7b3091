"""Completion of commands and of the guest's names, for those who type."""

from __future__ import annotations

import os
import stat

from vmsim.cli.shell.command import COMMANDS, Session
from vmsim.cli.shell.words import protected

try:
    import readline
except ImportError:  # a Python without it: lines are typed without help
    readline = None  # type: ignore[assignment,unused-ignore]

DELIMITERS = " \t\n;>"


def candidates(session: Session, text: str, before: str) -> list[str]:
    """What ``text`` may become, after ``before`` on the line."""
    if not before.rsplit(";", 1)[-1].strip():
        return [f"{name} " for name in COMMANDS if name.startswith(text)]
    folder, name = os.path.split(text)
    fs = session.fs
    found = []
    try:
        for each in sorted(fs.listdir(folder or ".")):
            if each.startswith(name) and (name or not each.startswith(".")) and each.isprintable():
                path = os.path.join(folder, each)
                is_folder = stat.S_ISDIR(fs.lstat(path).st_mode)
                found.append(protected(path) + ("/" if is_folder else " "))
    except OSError:
        pass
    return found


def install(session: Session) -> None:
    """Complete with the tab key, if this Python can."""
    if readline is None:
        return

    def complete(text: str, state: int) -> str | None:
        before = readline.get_line_buffer()[: readline.get_begidx()]
        found = candidates(session, text, before)
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(DELIMITERS)
    readline.parse_and_bind("tab: complete")
