"""``vmsim diff``: what changed between two captures."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

import click
from rich.text import Text

from vmsim.cli.common import Invocation, human_bytes, print_json, report_console
from vmsim.host.readable import ReadableFile
from vmsim.inspect.diff import Change, Pages, first_difference
from vmsim.inspect.diff import diff as compare
from vmsim.inspect.opening import read_capture
from vmsim.inspect.render import printable

MARKS: Final = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
LINES_MAX: Final = 200
RANGES_MAX: Final = 16
UNREADABLE: Final = 2


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--section",
    "sections",
    multiple=True,
    metavar="GLOB",
    help="Only these sections, such as '*vhost-user-fs' or ram; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="All differences, however many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def diff(
    invocation: Invocation, /, a: str, b: str, sections: tuple[str, ...], everything: bool, as_json: bool
) -> int:
    """Say what changed from capture A to capture B: streams, saved machines or back-end states.

    Sections, fields, rings, inodes, handles and options are compared by name, memory page by page. A state
    may also be compared with a stream that has one.

    \b
    Exit status: 0 no difference, 1 differences, 2 wrong usage or a file that cannot be read whole.
    """
    with ReadableFile(a) as first, ReadableFile(b) as second:
        left, right = (read_capture(file, name, loading=True) for file, name in ((first, a), (second, b)))
        changes, memory = compare(left, right)
        place = first_difference(first, second)
    changes = [change for change in changes if _wanted(change.path, sections)]
    memory = [pages for pages in memory if pages.differs and _wanted(("sections", "ram"), sections)]
    unread = [name for name, one in ((a, left), (b, right)) if not one.read_whole()]
    only_bytes = -1 if changes or memory or sections else place
    if as_json:
        print_json({
            "same": not changes and not memory and only_bytes < 0 and not unread, "a": a, "b": b,
            "partly_read": unread, "bytes_differ_at": place if place >= 0 else None,
            "changes": [change.facts() for change in changes], "memory": [pages.facts() for pages in memory],
        })  # fmt: skip
    else:
        _tell(changes, memory, unread, everything)
        if not changes and not memory:
            click.echo(_nothing_found(only_bytes, unread))
    return 1 if changes or memory or only_bytes >= 0 else UNREADABLE if unread else 0


def _nothing_found(place: int, unread: list[str]) -> str:
    if place >= 0:
        return f"no difference in what was decoded, but the files differ from byte {place:#x} on"
    return "no difference as far as they can be read" if unread else "no difference"


def _wanted(path: tuple[str, ...], globs: tuple[str, ...]) -> bool:
    name = path[1] if len(path) > 1 and path[0] == "sections" else path[0]
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _tell(changes: list[Change], memory: list[Pages], unread: list[str], everything: bool) -> None:
    console = report_console()
    for name in unread:
        console.print(
            Text(f"{printable(name)} is damaged, or not there as a whole: vmsim inspect --lint says where"),
            soft_wrap=True,
        )
    shown = changes if everything else changes[:LINES_MAX]
    for change in shown:
        mark, style = MARKS[change.kind]
        text = Text(f"{mark} ", style=style)
        path = " / ".join(printable(part) for part in change.path if part != "sections")
        text.append(f"{path}{': ' if change.text else ''}{printable(change.text)}", style="not bold")
        console.print(text, soft_wrap=True)
    if len(shown) < len(changes):
        console.print(f"… and {len(changes) - len(shown)} more (--all shows them)")
    for pages in memory:
        console.print(
            Text(f"~ ram / {printable(pages.block)}: {_pages(pages)}", style="yellow"), soft_wrap=True
        )
        ranges = pages.ranges if everything else pages.ranges[:RANGES_MAX]
        for start, size in ranges:
            console.print(f"    {start:#x} to {start + size:#x} ({human_bytes(size)})")
        if len(ranges) < len(pages.ranges) or pages.more_ranges:
            console.print(
                f"    … and more ranges, {len(pages.ranges)}{'+' if pages.more_ranges else ''} in all"
            )


def _pages(pages: Pages) -> str:
    parts = [
        f"{count} pages {what}" for count, what in (
            (pages.changed, "differ"), (pages.only_a, "only in the first"),
            (pages.only_b, "only in the second"),
            (pages.unknown, "cannot be compared"),
        ) if count
    ]  # fmt: skip
    return pages.why or ", ".join(parts)
