"""``vmsim inspect``: what is in a migration stream, a saved machine or a back-end's state, and what is
wrong.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from vmsim.cli.common import Invocation, print_json, report_console
from vmsim.errors import UsageError
from vmsim.host.readable import ReadableFile
from vmsim.inspect.capture import Capture
from vmsim.inspect.lint import compare
from vmsim.inspect.opening import KINDS, read_capture
from vmsim.inspect.render import hex_dump, lines, printable, selected, tree
from vmsim.wire.tree import Finding, Severity

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


@click.command()
@click.argument("file")
@click.option(
    "--lint", "linting", is_flag=True, help="Only say what is wrong; exit status 1 if an error is found."
)
@click.option(
    "--against",
    metavar="FILE",
    default="",
    help="With --lint: what of FILE does not fit this other capture (tag, features, queues, memory).",
)
@click.option(
    "--section",
    "sections",
    multiple=True,
    metavar="GLOB",
    help="Only these sections, such as '*vhost-user-fs' or ram; may be repeated.",
)
@click.option("--hex", "as_hex", is_flag=True, help="The bytes of every field with its name and value.")
@click.option("--all", "everything", is_flag=True, help="Long lists (inodes, handles, records) to their end.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="What the file is taken for.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def inspect(invocation: Invocation, /, file: str, **options: Any) -> int:
    """Say what is in FILE: a QEMU migration stream, a saved vmsim machine or a virtiofsd state.

    \b
    vmsim inspect /tmp/stream
    vmsim inspect --section '*vhost-user-fs' --hex /tmp/stream
    vmsim inspect --lint --against /tmp/other /tmp/stream

    \b
    Exit status: 0 fine, 1 --lint found an error, 2 wrong usage or the file is none of these.
    """
    if options["against"] and not options["linting"]:
        raise UsageError("--against goes with --lint")
    with ReadableFile(file) as source:
        capture = read_capture(source, file, options["kind"], loading=options["linting"])
        if options["against"]:
            with ReadableFile(options["against"]) as other:
                compare(capture, read_capture(other, options["against"]))
        if options["linting"]:
            return _lint(capture, options["as_json"])
        return _show(capture, options)


def facts(capture: Capture) -> dict[str, Any]:
    """What is told of every capture."""
    return {
        "file": capture.name,
        "kind": capture.kind,
        "size": capture.source.size,
        "decoded": capture.end,
        "findings": [finding.facts() for finding in capture.findings],
    }


def _lint(capture: Capture, as_json: bool) -> int:
    errors = capture.errors()
    if as_json:
        print_json({"ok": not errors, **facts(capture)})
        return int(bool(errors))
    for finding in capture.findings:
        _tell(finding)
    numbers = [
        f"{count} {severity.name.lower()}{'s' if count != 1 else ''}"
        for severity in reversed(Severity)
        if (count := sum(finding.severity is severity for finding in capture.findings))
    ]
    click.echo(f"{printable(capture.name)} ({capture.kind}): {', '.join(numbers) or 'nothing found'}")
    return int(bool(errors))


def _tell(finding: Finding) -> None:
    from rich.text import Text

    text = Text(f"{finding.severity.name.lower():<8}", style=STYLES[finding.severity])
    where = f" at {finding.offset:#x}" if finding.offset >= 0 else ""
    text.append(
        f"{finding.code}{where} in {printable(finding.field)}: {printable(finding.message)}", style="not bold"
    )
    console = report_console()
    console.print(text, soft_wrap=True)
    if finding.hint:
        console.print(Text(f"         {printable(finding.hint)}", style="dim"), soft_wrap=True)


def _show(capture: Capture, options: dict[str, Any]) -> int:
    nodes = selected(capture, options["sections"])
    if not nodes and options["sections"]:
        raise UsageError("no section is so named", hint="without --section all are shown")
    if options["as_json"]:
        if options["sections"]:
            parts = {node.key: node.facts() for node in nodes}
        else:
            parts = {node.key: node.facts() for node in capture.root.distinct().children}
        print_json(
            {
                **facts(capture),
                **{f"{name}_": value for name, value in parts.items() if name in facts(capture)},
                **{name: value for name, value in parts.items() if name not in facts(capture)},
            }
        )
        return 0
    title = f"{printable(capture.name)}: {capture.kind}, {capture.source.size} bytes"
    if options["as_hex"]:
        for line in hex_dump(capture, nodes):
            click.echo(line)
    elif sys.stdout.isatty():
        report_console().print(tree(title, nodes, options["everything"]))
    else:
        click.echo(title)
        for line in lines(nodes, options["everything"]):
            click.echo(line)
    if not options["sections"]:
        for finding in capture.findings:
            _tell(finding)
    return 0
