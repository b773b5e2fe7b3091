"""``vmsim docs``: the READMEs of the packages, wherever vmsim is installed."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, metadata
from pathlib import Path
from typing import Final

import click

import vmsim
from vmsim.cli.common import Invocation, print_json
from vmsim.errors import UsageError
from vmsim.machine.installed import ENTRY_POINTS

README: Final = "README.md"
START: Final = "start"
"""The page that is the project's own README."""


@click.command()
@click.argument("page", required=False)
@click.option("--json", "as_json", is_flag=True, help="The pages and their texts as one JSON object.")
@click.pass_obj
def docs(invocation: Invocation, /, page: str | None, as_json: bool) -> int:
    """Show a page of the documentation; without PAGE, list them.

    \b
    vmsim docs start              what vmsim is, and commands to try
    vmsim docs migration          what happens in a migration
    vmsim docs virtio_fs/state    what the back-end sends along
    """
    pages = find_pages()
    if as_json:
        print_json({"pages": pages if page is None else {page: _page(pages, page)}})
    elif page is None:
        width = max(map(len, pages))
        for name, text in pages.items():
            click.echo(f"{name:<{width}}  {_title(text)}")
    else:
        _show(_page(pages, page))
    return 0


def find_pages() -> dict[str, str]:
    """Every page by its name, which is the path of its package: vmsim's own, then those of the devices."""
    pages = {START: _start()}
    for package in (Path(vmsim.__file__).parent, *_device_packages()):
        for path in sorted(package.rglob(README)):
            name = path.parent.relative_to(package).as_posix()
            pages[package.name if name == "." else name] = path.read_text(encoding="utf-8")
    return pages


def _device_packages() -> list[Path]:
    """Where the installed devices lie: the top-level packages that their entry points name."""
    names = dict.fromkeys(entry.module.partition(".")[0] for entry in entry_points(group=ENTRY_POINTS))
    return [Path(file).parent for name in names if (file := import_module(name).__file__)]


def _start() -> str:
    """The README of the checkout, or else the description that came with the installed package."""
    beside = Path(vmsim.__file__).parent.parent / README
    if beside.is_file() and beside.with_name("pyproject.toml").is_file():
        return beside.read_text(encoding="utf-8")
    try:
        about = metadata("vmsim")
    except PackageNotFoundError:
        return "# vmsim\n"
    text = about.get_payload() or about["Description"]  # type: ignore[attr-defined]
    return str(text or "# vmsim\n")


def _page(pages: dict[str, str], name: str) -> str:
    if name not in pages:
        near = difflib.get_close_matches(name, pages, 3, 0.4)
        raise UsageError(
            f"there is no page {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else "vmsim docs lists them",
        )
    return pages[name]


def _title(text: str) -> str:
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")


def _show(text: str) -> None:
    """Formatted on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text, nl=not text.endswith("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(text))
