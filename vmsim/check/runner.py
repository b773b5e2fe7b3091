"""Runs cases one after the other, and says what came of each."""

from __future__ import annotations

import fnmatch
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from vmsim.check.case import PAIR, Case
from vmsim.check.device import GivenUp
from vmsim.check.outcome import Failed, NotOffered, Outcome, Result
from vmsim.check.rigs import Rig, missing
from vmsim.check.target import Aim, Target
from vmsim.errors import HostError, StallError, UsageError, VmsimError
from vmsim.host.vhost_user.transport import ConnectionLost, PeerSilent

USED_UP = ("no answer within", "nothing used within", "takes too long")


def select(cases: Iterable[Case], only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Case]:
    """The cases that one of the patterns ``only`` names (all without any), without those of ``skip``."""

    def named(case: Case, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(case.id, each) or case.group == each for each in patterns)

    return [case for case in cases if (not only or named(case, only)) and not named(case, skip)]


def reproduce(case: Case, aim: Aim) -> str:
    """The command that runs this case alone."""
    words = ["vmsim", "check"]
    words += ["--start", aim.start] if aim.start else ["--socket-path", aim.socket]
    if aim.shared_dir:
        words += ["--shared-dir", aim.shared_dir]
    if aim.seed:
        words += ["--seed", str(aim.seed)]
    return shlex.join([*words, "--only", case.id])


def run(
    cases: Iterable[Case], target: Target, told: Callable[[Result], object] = lambda result: None, *,
    repeat: int = 1,
) -> list[Result]:  # fmt: skip
    """Run them, each ``repeat`` times; ``told`` hears of each result. UsageError if nobody is reached."""
    results = []
    coming = list(cases)
    for case, following in zip(coming, [*coming[1:], None], strict=True):
        times = [run_case(case, target, following if last else case) for last in _until_last(repeat)]
        result = merged(times) if repeat > 1 else times[0]
        results.append(result)
        told(result)
    return results


def _until_last(count: int) -> Iterator[bool]:
    return (number == count for number in range(1, count + 1))


def merged(times: Sequence[Result]) -> Result:
    """One result for a case that was run several times: the first bad one, else the first; all verdicts."""
    worst = next((result for result in times if result.outcome.bad), times[0])
    verdicts = Counter(result.outcome.value for result in times)
    return replace(worst, verdicts=verdicts, duration_s=sum(result.duration_s for result in times))


def run_case(case: Case, target: Target, following: Case | None = None) -> Result:
    """Run one; the end of a back-end is an outcome like any other.

    What the case ``following`` needs is begun early.
    """
    began = time.monotonic()
    result = Result(
        case.id, case.group, case.summary, case.spec, Outcome.PASS, command=reproduce(case, target.aim)
    )
    reason = missing(case, target)
    if reason:
        return replace(result, outcome=Outcome.NOT_OFFERED, reason=reason, command="")
    outcome, expected, came, said = _attempt(case, target, following)
    duration = time.monotonic() - began
    if outcome is Outcome.NOT_OFFERED:
        return replace(result, outcome=outcome, reason=came, command="", duration_s=duration)
    return replace(
        result, outcome=outcome, expected=expected, came=came, said=said, duration_s=duration,
        command=result.command if outcome.bad else "",
    )


def _attempt(case: Case, target: Target, following: Case | None) -> tuple[Outcome, str, str, str]:
    """Outcome, what was expected, what came, what the back-end said."""
    rig: Rig | None = None
    error: Exception | None = None
    try:
        try:
            rig = _make(case, target)
            if following is not None and not target.known(following.options):
                target.prepare(pair=PAIR in following.needs)
            case.run(rig)
        except UsageError:
            raise
        except Exception as caught:
            error = caught
        if isinstance(error, NotOffered):
            return Outcome.NOT_OFFERED, "", str(error), ""
        lost = rig is not None and (rig.lost or _caused(error, ConnectionLost))
        deaths = rig.deaths(lost=lost) if rig is not None else ""
        outcome, expected, came = _judge(error, deaths, lost)
        said = rig.said() if rig is not None and outcome.bad else ""
        return outcome, expected, came, said
    finally:
        if rig is not None:
            rig.close()


def _make(case: Case, target: Target) -> Rig:
    """The rig; one whose making fails gives its instances back itself."""
    kind: Any = case.rig
    rig: Rig = kind.__new__(kind)
    try:
        kind.__init__(rig, target, case)
    except BaseException:
        if hasattr(rig, "instances"):
            rig.close()
        raise
    return rig


def _judge(error: Exception | None, deaths: str, lost: bool) -> tuple[Outcome, str, str]:
    """What an error, or none, means."""
    alive = "the back-end lives on"
    if deaths or lost or _caused(error, ConnectionLost):
        came = deaths or "it closed the connection"
        if error is not None and not _caused(error, ConnectionLost):
            came += f" ({_words(error)})"
        return Outcome.CRASH, alive, came
    if error is None:
        return Outcome.PASS, "", ""
    if isinstance(error, Failed):
        return Outcome.FAIL, error.expected, error.came
    if _caused(error, PeerSilent, StallError) or any(words in str(error) for words in USED_UP):
        return Outcome.HANG, "an answer in time", _words(error)
    if isinstance(error, GivenUp):
        return Outcome.FAIL, "the ring works", f"the back-end reported an error of {error}"
    return Outcome.FAIL, "success", _words(error)


def _caused(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether one of ``kinds`` is the error or its cause."""
    while error is not None:
        if isinstance(error, kinds):
            return True
        error = error.__cause__
    return False


def _words(error: Exception) -> str:
    if isinstance(error, HostError) and error.hint:
        return f"{error} ({error.hint})"
    if isinstance(error, VmsimError | Failed | GivenUp):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" in line {where.tb_lineno} of {where.tb_frame.f_code.co_filename}" if where is not None else ""
    return f"a mistake of this case: {type(error).__name__}: {error}{line}"
