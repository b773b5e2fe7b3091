"""``vmsim check``: test any vhost-user-fs back-end, without a virtual machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from vmsim.check import report, runner
from vmsim.check.case import Case
from vmsim.check.cases import CASES
from vmsim.check.outcome import Outcome, Result
from vmsim.check.target import Aim, Target
from vmsim.cli.common import Invocation, print_json, printable, report_console, stderr_console
from vmsim.errors import HostError, UsageError

STYLES = {
    Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.CRASH: "bold red", Outcome.HANG: "magenta",
    Outcome.NOT_OFFERED: "dim",
}  # fmt: skip

REPEAT_MAX = 10_000


@click.command()
@click.option("--start", metavar="COMMAND", default="",
              help="Start back-ends with this, a fresh one for each case: {socket} and {dir} stand for the "
                   "socket's path and the shared directory, {options} for what some cases add.")
@click.option("--socket-path", metavar="PATH", default="", help="Or test the back-end that listens here.")
@click.option("--shared-dir", metavar="DIR", default="",
              help="What that back-end shares; a folder in it is used. With --start: make directories here.")
@click.option("--only", multiple=True, metavar="GLOB", help="Only these cases (or groups); may be repeated.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Not these; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Say what there is, and do nothing.")
@click.option("--timeout", type=click.FloatRange(min=0.05), default=5.0, show_default=True, metavar="SECONDS",
              help="A back-end that is silent for so long hangs.")
@click.option("--repeat", type=click.IntRange(1, REPEAT_MAX), default=1, show_default=True, metavar="N",
              help="Run each case N times; one that does not end the same way each time counts as bad.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what cases choose at random.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--junit-xml", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write results for a CI system.")
@click.pass_obj
def check(invocation: Invocation, /, **options: Any) -> int:
    """Test a vhost-user-fs back-end as a front-end and as a guest.

    \b
    vmsim check --start 'virtiofsd --sandbox=none --socket-path={socket} --shared-dir={dir} {options}'
    vmsim check --socket-path /tmp/fs.sock --shared-dir /srv/shared --only 'fuse.*'

    \b
    Exit status: 0 all passed or are not offered, 1 something failed, crashed, hung or (with --repeat) did not
    end the same way each time, 2 wrong usage.
    """
    cases = runner.select(CASES, options["only"], options["skip"])
    if not cases:
        raise UsageError("no case is so named", hint="see --list")
    if options["listing"]:
        return _list(cases, options["as_json"])
    aim = Aim(
        options["start"], options["socket_path"], options["shared_dir"], options["timeout"], options["seed"]
    )
    told = Telling(stderr_console() if options["as_json"] else report_console())
    junit_xml = _place(options["junit_xml"])
    results = _run(cases, Target(aim), told, invocation, junit_xml, options["repeat"])
    told.summary(results)
    if options["as_json"]:
        print_json(report.facts(results))
    return int(any(result.bad for result in results))


def _place(junit_xml: Path | None) -> Path | None:
    """UsageError now rather than an error after a long run, if nothing can be written there."""
    if junit_xml is not None and not (junit_xml.parent.is_dir() and os.access(junit_xml.parent, os.W_OK)):
        raise UsageError(f"cannot write {junit_xml}", hint="see --junit-xml")
    return junit_xml


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"cannot write {path}", errno=error.errno or errno.EIO) from error


def _run(
    cases: list[Case], target: Target, told: Telling, invocation: Invocation, junit_xml: Path | None,
    repeat: int,
) -> list[Result]:  # fmt: skip
    """The results; whoever interrupts it gets those that are there."""
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        told.result(result)

    try:
        target.try_start()
        runner.run(cases, target, tell, repeat=repeat)
    except BaseException:
        if results:
            invocation.facts.update(report.facts(results), ok=False)
        raise
    finally:
        target.close()
        if junit_xml is not None and results:
            _write(junit_xml, report.junit_xml(results))
    return results


def _list(cases: list[Case], as_json: bool) -> int:
    if as_json:
        rows = [
            {"id": case.id, "summary": case.summary, "spec": case.spec, "needs": sorted(case.needs),
             "options": list(case.options)}
            for case in cases
        ]  # fmt: skip
        print_json({"cases": rows})
        return 0
    for case in cases:
        click.echo(f"{case.id:<40} {case.summary} [{case.spec}]")
    return 0


class Telling:
    """Tells each result when it is there, under the heading of its group."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._group = ""

    def result(self, result: Result) -> None:
        """One line; more of what is bad."""
        if result.group != self._group:
            self._group = result.group
            self._line(f"[bold]{result.group}[/]")
        outcome = result.outcome
        name = result.id.partition(".")[2]
        word = "unstable" if result.unstable else outcome.value
        label = f"[{'yellow' if result.unstable else STYLES[outcome]}]{word:>11}[/]"
        about = result.reason if outcome is Outcome.NOT_OFFERED else result.summary
        self._line(f"{label}  {name:<34} {_clean(about)}")
        if result.bad:
            for what, text in (
                ("ended", report.verdict(result).partition(": ")[2]),
                ("expected", result.expected), ("came", result.came), ("see", result.spec),
                ("it said", result.said), ("again", result.command),
            ):  # fmt: skip
                for number, line in enumerate(text.splitlines()[-4:] if text else []):
                    self._line(f"{what if not number else '':>22}: {_clean(line)}")

    def summary(self, results: list[Result]) -> None:
        """The last line."""
        numbers = ", ".join(f"{count} {name}" for name, count in report.counts(results).items() if count)
        duration = sum(result.duration_s for result in results)
        unstable = sum(result.unstable for result in results)
        more = f"; {unstable} did not end the same way each time" if unstable else ""
        self._line(f"{len(results)} cases in {duration:.1f} s: {numbers}{more}")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _clean(text: str) -> str:
    return escape(printable(text))
