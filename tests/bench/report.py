"""The table that people read."""

from __future__ import annotations

import os
import platform

from tests.bench.measure import Figure

VERDICTS = {True: "met", False: "MISSED", None: ""}


def headline(cpu: int, quick: bool) -> str:
    """What was measured on, and the titles of the columns."""
    where = f"Python {platform.python_version()}, Linux {os.uname().release}, pinned to CPU {cpu}"
    small = "; quick: sizes too small to say anything" if quick else ""
    return f"{where}{small}\n{'figure':34} {'median':>10} {'smallest .. largest':>22}  {'unit':16} aim"


def line(figure: Figure) -> str:
    """One figure, its details and its note."""
    if figure.value is None:
        return f"{figure.name:34} {'skipped':>10}  {figure.skipped}"
    value = figure.value
    spread = f"{number(value.low)} .. {number(value.high)}"
    aim = "" if figure.aim is None else f"{'>=' if figure.more_is_better else '<='} {number(figure.aim)}"
    text = f"{figure.name:34} {number(value.median):>10} {spread:>22}  {figure.unit:16} {aim:12}"
    text = f"{text} {VERDICTS[figure.met]}".rstrip()
    if figure.detail:
        parts = [f"{name} {number(amount)}" for name, amount in figure.detail.items()]
        text += "\n    " + ", ".join(parts)
    if figure.note:
        text += f"\n    {figure.note}"
    return text


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
