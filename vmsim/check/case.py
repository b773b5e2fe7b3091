"""A case: what it is called, what it tests, what it needs, and the function that does it."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

Run = Callable[[Any], None]

START: Final = "start"
"""Needs --start: instances of its own, to be started or killed."""
SHARE: Final = "share"
"""Needs the shared directory's path on this host."""
PAIR: Final = "pair"
"""Needs two instances on one directory."""


@dataclass(frozen=True)
class Case:
    """One test of a back-end.

    ``needs`` are START, SHARE, PAIR, or the name of a protocol feature; ``options`` are added to a start
    command that has a place for them ({options}), in virtiofsd's spelling. ``run`` gets the rig named by the
    annotation of its first argument and returns, or raises one of outcome.py's errors.
    """

    id: str
    group: str
    summary: str
    spec: str
    needs: frozenset[str]
    options: tuple[str, ...]
    run: Run

    @property
    def rig(self) -> type:
        """The class of the rig that ``run`` wants."""
        hints = typing.get_type_hints(self.run)
        rig: type = hints["rig"]
        return rig


@dataclass
class Group:
    """Cases about one thing; a module's decorator for them."""

    name: str
    cases: list[Case] = field(default_factory=list)

    def case(
        self, name: str, spec: str, *, needs: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> Callable[[Run], Run]:
        """Make the decorated function the case ``group.name``; its docstring is the description."""

        def add(run: Run) -> Run:
            summary = " ".join((run.__doc__ or "").split()).rstrip(".")
            self.cases.append(
                Case(f"{self.name}.{name}", self.name, summary, spec, frozenset(needs), options, run)
            )
            return run

        return add
