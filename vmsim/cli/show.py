"""Reports for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from vmsim.cli.common import human_bytes, human_ns, printable
from vmsim.migration.downtime import PARTS
from vmsim.workload.continued import ContinuedReport
from vmsim.workload.report import Hop, JobReport, Standstill
from vmsim.workload.stages import Stage

DISCREPANCIES_SHOWN: Final = 40
HOPS_SHOWN: Final = 12
"""At either end of a long journey."""


def show_job(report: JobReport, console: Console) -> None:
    """What a job found out; the verdict comes last."""
    console.print()
    if len(report.hops) == 1:
        console.print(_one_hop(report.hops[0]))
    else:
        console.print(_what_moved(report.hops))
    console.print(_how_it_went(report.hops))
    _line(console, _downtime(report.downtimes))
    for number, standstill in enumerate(report.downtimes, 1):
        for warning in standstill.warnings:
            _line(console, f"  warning (hop {number}): {warning}")
    for number, hop in enumerate(report.hops, 1):
        for note in hop.notes:
            _line(console, f"  note (hop {number}): {note}")
    _stages(console, report.stages)
    _kept_alive(console, "kept alive", report.workload)
    for each in report.left_out:
        _line(console, f"left out: {each}")
    if report.saved:
        _line(console, f"saved: {report.saved}; continue with: "
                       f"vmsim restore {report.saved} --share {report.share}")
    _verdict(console, report.discrepancies, f"again with: --seed {report.seed}")


def show_continued(report: ContinuedReport, console: Console) -> None:
    """What a restored machine's job found out."""
    for note in report.notes:
        _line(console, f"  note: {note}")
    moved = report.moved
    _line(console, f"restored: {moved['rings']} rings, {moved['inodes']} inodes, {moved['handles']} handles, "
                   f"{_told(moved, 'locks')} locks")
    _stages(console, report.stages)
    _kept_alive(console, "kept alive", report.workload)
    _verdict(console, report.discrepancies, f"the guest's files are still in {report.share}")


def _line(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, soft_wrap=True)


def _told(moved: dict[str, int], name: str) -> str:
    """A number that a back-end in another process may keep to itself."""
    return str(moved.get(name, "?"))


def _kept_alive(console: Console, title: str, workload: dict[str, int]) -> None:
    alive = [f"{count} {kind.replace('_', ' ')}" for kind, count in workload.items() if kind != "steps"]
    _line(console, f"{title}: {', '.join(alive)}; {workload.get('steps', 0)} operations of the guest")


def _stages(console: Console, stages: Sequence[Stage]) -> None:
    """How long each took, those of one name together."""
    sums: dict[str, tuple[float, int]] = {}
    for stage in stages:
        seconds, times = sums.get(stage.name, (0.0, 0))
        sums[stage.name] = (seconds + stage.seconds, times + 1)
    each = [
        f"{name} {seconds:.2f} s" + (f" ({times} times)" if times > 1 else "")
        for name, (seconds, times) in sums.items()
    ]
    total = sum(stage.seconds for stage in stages)
    _line(console, f"stages: {', '.join(each)}; {total:.2f} s in all")


def _verdict(console: Console, discrepancies: Sequence[str], hint: str) -> None:
    for line in discrepancies[:DISCREPANCIES_SHOWN]:
        _line(console, f"  differs: {line}")
    if len(discrepancies) > DISCREPANCIES_SHOWN:
        _line(console, f"  ... and {len(discrepancies) - DISCREPANCIES_SHOWN} more (--json has all)")
    if not discrepancies:
        console.print("[green]verdict: everything held[/green]")
        return
    count = len(discrepancies)
    console.print(f"[red]verdict: {count} thing{'s' if count > 1 else ''} did not hold[/red]")
    _line(console, f"  ({hint})")


def _one_hop(hop: Hop) -> Table:
    table = Table(title="what moved", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    moved = hop.moved
    rows = (
        ("RAM", f"{human_bytes(hop.ram_bytes)}, {hop.pages} pages and {hop.zero_pages} zero pages sent"),
        ("vrings", f"{moved['rings']} rings, {hop.requests_in_flight} requests in flight"),
        ("inodes", str(moved["inodes"])),
        ("handles", str(moved["handles"])),
        ("locks", f"{_told(moved, 'locks')} held, {moved['waiting']} waited for"),
        ("device and back-end state", human_bytes(hop.state_bytes)),
        ("guest state", human_bytes(hop.guest_bytes)),
        ("stream", human_bytes(hop.stream_bytes)),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _what_moved(hops: Sequence[Hop]) -> Table:
    ram, rings = human_bytes(hops[0].ram_bytes), hops[0].moved["rings"]
    title = f"what moved, {len(hops)} hops: {ram} of RAM, {rings} rings"
    table = Table(title=title, title_justify="left")
    for column in ("hop", "pages", "zero", "requests", "inodes", "handles", "locks", "waiting", "state",
                   "guest", "stream"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, hop in _ends(hops, table):
        moved = hop.moved
        numbers = (
            number, hop.pages, hop.zero_pages, hop.requests_in_flight, moved["inodes"], moved["handles"],
            _told(moved, "locks"), moved["waiting"],
        )
        sizes = (hop.state_bytes, hop.guest_bytes, hop.stream_bytes)
        table.add_row(*map(str, numbers), *map(human_bytes, sizes))
    return table


def _how_it_went(hops: Sequence[Hop]) -> Table:
    table = Table(title="how it went", title_justify="left")
    for column in ("hop", "rounds", "memory sent", "dirty at last", "guest's steps", "downtime", "total"):
        table.add_column(column, justify="right")
    for number, hop in _ends(hops, table):
        sent = sum(each["memory_bytes"] for each in hop.rounds)
        table.add_row(
            str(number), str(len(hop.rounds)), human_bytes(sent), human_bytes(hop.rounds[-1]["dirty_bytes"]),
            str(hop.steps), human_ns(hop.downtime_ns), human_ns(hop.total_ns),
        )  # fmt: skip
    return table


def _downtime(downtimes: Sequence[Standstill]) -> str:
    """The parts of the time in which nobody ran, of the hop in which that was longest."""
    worst = max(downtimes, key=lambda each: sum(each.measured.values()))
    total, expected = sum(worst.measured.values()), sum(worst.expected.values())
    parts = [f"{PARTS[name]} {human_ns(took)}" for name, took in worst.measured.items() if took]
    return (
        f"downtime, at most: {human_ns(total)} ({', '.join(parts)}); "
        f"expected {human_ns(expected)}, allowed {human_ns(worst.limit_ns)}"
    )


def _ends(hops: Sequence[Hop], table: Table) -> list[tuple[int, Hop]]:
    """The hops with their numbers; of many only those at both ends."""
    numbered = list(enumerate(hops, 1))
    if len(numbered) <= 2 * HOPS_SHOWN:
        return numbered
    table.caption = f"{len(numbered) - 2 * HOPS_SHOWN} hops in the middle are not shown; --json has all"
    table.caption_justify = "left"
    return numbered[:HOPS_SHOWN] + numbered[-HOPS_SHOWN:]
