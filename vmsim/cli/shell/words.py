"""Lines of the shell, taken apart: words, quotes, ``;``, ``#``, ``>`` and ``>>``, and patterns of names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from vmsim.cli.shell.command import ShellError

TOKEN: Final = re.compile(
    r"""\s*(?: (?P<end>;) | (?P<redirect>>>?) | (?P<comment>\#.*)
      | (?P<word>(?: [^\s;>"'\\] | \\. | '[^']*' | "(?:[^"\\]|\\.)*" )+) )""",
    re.VERBOSE | re.DOTALL,
)
PIECE: Final = re.compile(r"""(?P<plain>[^"'\\]+) | \\(?P<escaped>.) | '(?P<single>[^']*)'
      | "(?P<double>(?:[^"\\]|\\.)*)" """, re.VERBOSE | re.DOTALL)
ESCAPED: Final = re.compile(r'\\(["\\])')
PATTERN: Final = re.compile(r"[*?[]")


class Word(NamedTuple):
    """A word without its quotes; a ``quoted`` one is no pattern."""

    text: str
    quoted: bool = False


class Statement(NamedTuple):
    """One command with its words; its output goes to ``target`` if there is one."""

    words: list[Word]
    target: Word | None = None
    append: bool = False


def statements(line: str) -> list[Statement]:
    """The commands of a line; ShellError if a quotation has no end."""
    found = []
    for words, redirects in _groups(line):
        if len(redirects) > 1:
            raise ShellError("only one > or >> in a command")
        if redirects and redirects[0][1] is None:
            raise ShellError(f"a file has to follow {redirects[0][0]}")
        if redirects and not words:
            raise ShellError(f"a command has to precede {redirects[0][0]}")
        mark, target = redirects[0] if redirects else ("", None)
        if words:
            found.append(Statement(words, target, mark == ">>"))
    return found


Redirects = list[tuple[str, Word | None]]


def _groups(line: str) -> Iterator[tuple[list[Word], Redirects]]:
    """Words and redirections between two semicolons."""
    words: list[Word] = []
    redirects: Redirects = []
    at = 0
    line = line.rstrip()
    while at < len(line):
        match = TOKEN.match(line, at)
        if match is None:
            raise ShellError(f"a quotation has no end: {line[at:].strip()}")
        at = match.end()
        if match["end"]:
            yield words, redirects
            words, redirects = [], []
        elif match["redirect"]:
            redirects.append((match["redirect"], None))
        elif match["word"]:
            word = _unquoted(match["word"])
            if redirects and redirects[-1][1] is None:
                redirects[-1] = (redirects[-1][0], word)
            else:
                words.append(word)
    yield words, redirects


def _unquoted(text: str) -> Word:
    pieces = list(PIECE.finditer(text))
    plain = "".join(
        piece["plain"] or piece["escaped"] or piece["single"] or ESCAPED.sub(r"\1", piece["double"] or "")
        for piece in pieces
    )
    return Word(plain, any(piece["plain"] is None for piece in pieces))


def expanded(word: Word, listdir: Callable[[str], list[str]]) -> list[str]:
    """The names that a pattern stands for, sorted; the word itself if it is none or matches nothing."""
    if word.quoted or not PATTERN.search(word.text):
        return [word.text]
    found = ["/"] if word.text.startswith("/") else [""]
    for part in word.text.strip("/").split("/"):
        found = [path for folder in found for path in _matching(folder, part, listdir)]
    return [path.rstrip("/") for path in found] or [word.text]


def _matching(folder: str, part: str, listdir: Callable[[str], list[str]]) -> list[str]:
    if not PATTERN.search(part):
        return [folder + part + "/"] if part else [folder]
    try:
        names = sorted(listdir(folder or "."))
    except OSError:
        return []
    shown = [name for name in names if not name.startswith(".") or part.startswith(".")]
    return [f"{folder}{name}/" for name in shown if fnmatch.fnmatchcase(name, part)]


def protected(name: str) -> str:
    """A name as it has to be typed."""
    return re.sub(r"""([\s;>"'\\#*?\[])""", r"\\\1", name)
