"""What comes of a case, and the errors by which a case says so."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn


class Outcome(enum.Enum):
    """How a case ended."""

    PASS = "pass"
    FAIL = "fail"
    CRASH = "crash"
    HANG = "hang"
    NOT_OFFERED = "not offered"

    @property
    def bad(self) -> bool:
        """Whether it counts against the back-end."""
        return self in (Outcome.FAIL, Outcome.CRASH, Outcome.HANG)


class Failed(Exception):
    """The back-end did something else than it should: ``expected`` and ``came``, in words."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; {came}")
        self.expected = expected
        self.came = came


class NotOffered(Exception):
    """The case has nothing to test here; the message says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """One case's outcome; ``expected`` and ``came`` are empty unless it is bad.

    ``reason`` says why a case was not offered, ``said`` is what the back-end printed, ``command`` runs the
    case again. ``verdicts``: how often it ended how, if it was repeated; it is then the worst of them.
    """

    id: str
    group: str
    summary: str
    spec: str
    outcome: Outcome
    reason: str = ""
    expected: str = ""
    came: str = ""
    said: str = ""
    command: str = ""
    duration_s: float = 0.0
    verdicts: Mapping[str, int] = field(default_factory=dict)

    @property
    def unstable(self) -> bool:
        """Whether it did not end the same way each time."""
        return len(self.verdicts) > 1

    @property
    def bad(self) -> bool:
        """Whether it counts against the back-end."""
        return self.outcome.bad or self.unstable

    def facts(self) -> dict[str, Any]:
        """As JSON; what is empty is left out."""
        facts: dict[str, Any] = {
            "id": self.id, "group": self.group, "summary": self.summary, "spec": self.spec,
            "outcome": self.outcome.value, "duration_s": round(self.duration_s, 4),
        }  # fmt: skip
        for name in ("reason", "expected", "came", "said", "command", "verdicts"):
            if value := getattr(self, name):
                facts[name] = dict(value) if name == "verdicts" else value
        return facts


def fail(expected: str, came: object) -> NoReturn:
    """Fail: that was expected, this came."""
    raise Failed(expected, came if isinstance(came, str) else repr(came))


def same(came: object, wanted: object, what: str) -> None:
    """Fail unless ``came`` equals ``wanted``; ``what`` names the thing."""
    if came != wanted:
        fail(f"{what}: {_short(wanted)}", _short(came))


def check(condition: object, expected: str, came: object = "it is not so") -> None:
    """Fail unless ``condition`` holds."""
    if not condition:
        fail(expected, came if isinstance(came, str) else _short(came))


def _short(value: object) -> str:
    number = isinstance(value, int) and not isinstance(value, bool) and value > 9999
    text = f"{value:#x}" if number else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
