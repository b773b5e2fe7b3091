"""Outcomes: what a misbehaving back-end is told it did; selection; reports."""

from __future__ import annotations

import os
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmsim.check import report
from vmsim.check.case import PAIR, SHARE, START, Case
from vmsim.check.cases import CASES, GROUPS
from vmsim.check.outcome import NotOffered, Outcome, Result
from vmsim.check.rigs import GuestRig, PairRig, RingRig, WireRig
from vmsim.check.runner import reproduce, run_case, select
from vmsim.check.target import Aim, Target
from vmsim.errors import UsageError
from vmsim.host.vhost_user.transport import ConnectionLost

BAD = Path(__file__).with_name("bad_backend.py")
BY_ID = {case.id: case for case in CASES}


def bad(what: str, **more) -> Aim:
    return Aim(start=shlex.join([sys.executable, str(BAD), "{socket}", what]), **more)


def run(aim: Aim, case: Case) -> Result:
    target = Target(aim)
    try:
        return run_case(case, target)
    finally:
        target.close()


@pytest.mark.parametrize(
    ("what", "outcome", "came"),
    [
        ("nothing", Outcome.PASS, ""), ("flags", Outcome.FAIL, "instead of 0x5"),
        ("killed", Outcome.CRASH, "killed by SIGKILL"), ("closes", Outcome.CRASH, "closed the connection"),
        ("panics", Outcome.CRASH, "panicked at"), ("silent", Outcome.HANG, "no message within 0.5 s"),
    ],
)  # fmt: skip
def test_outcomes(what, outcome, came):
    result = run(bad(what, timeout_s=0.5), BY_ID["messages.reply-ack"])
    assert (result.outcome, came in result.came) == (outcome, True), result
    assert bool(result.command) == outcome.bad


def test_a_feature_that_is_missing_is_no_failure():
    result = run(bad("nothing"), BY_ID["messages.config"])
    assert (result.outcome, result.reason) == (Outcome.NOT_OFFERED, "protocol feature CONFIG is not offered")
    assert result.command == ""


def test_a_mistake_in_a_case_says_so():
    def run_it(rig: WireRig) -> None:
        """Divides by zero."""
        rig.wire.barrier()
        raise ZeroDivisionError("oops")

    result = run(bad("nothing"), Case("x.y", "x", "", "", frozenset(), (), run_it))
    assert result.outcome is Outcome.FAIL
    assert "a mistake of this case: ZeroDivisionError: oops in line" in result.came


def test_back_ends_that_do_not_start_are_the_users_concern():
    target = Target(Aim(start="false {socket}"))
    with pytest.raises(Exception, match="ended with exit status 1"):
        target.try_start()
    target.close()
    for aim in (Aim(), Aim(start="x {socket}", socket="y"), Aim(socket="y", shared_dir="/none/there")):
        with pytest.raises(UsageError):
            Target(aim)
    with pytest.raises(UsageError, match="nobody listens"):
        run(Aim(socket="/none/there"), BY_ID["messages.get-features"])


def test_cases_are_well_formed():
    assert len({case.id for case in CASES}) == len(CASES) > 250
    assert set(GROUPS) == {"messages", "rings", "fuse", "hostile", "log", "state", "migration", "killed"}
    for case in CASES:
        assert case.summary, case.id
        assert len(case.summary) <= 110, case.id
        assert case.spec, case.id
        assert issubclass(case.rig, WireRig | GuestRig), case.id
        assert case.needs <= {START, SHARE, PAIR}, case.id
        if issubclass(case.rig, GuestRig):
            assert SHARE in case.needs, case.id
        if issubclass(case.rig, PairRig):
            assert PAIR in case.needs, case.id


def test_selection():
    only = select(CASES, ["state", "rings.split*"], ["rings.split-e*"])
    assert {case.group for case in only} == {"state", "rings"}
    assert "rings.split" in {case.id for case in only}
    assert "rings.split-event-idx" not in {case.id for case in only}
    assert len(select(CASES)) == len(CASES)


def test_the_command_that_runs_a_case_again():
    aim = Aim(start="x '{socket}' $HOME", shared_dir="/", seed=5)
    words = shlex.split(reproduce(BY_ID["fuse.link"], aim))
    assert words == ["vmsim", "check", "--start", aim.start, "--shared-dir", "/", "--seed", "5", "--only",
                     "fuse.link"]  # fmt: skip


def result(outcome: Outcome, **more) -> Result:
    return Result("group.name", "group", "summary", "spec", outcome, **more)


def test_reports():
    results = [
        result(Outcome.PASS), result(Outcome.NOT_OFFERED, reason="no"),
        result(Outcome.FAIL, expected="<this>", came="that \0", said="words", command="again"),
        result(Outcome.CRASH, expected="life", came="death"), result(Outcome.HANG, came="silence"),
    ]  # fmt: skip
    facts = report.facts(results)
    assert facts["counts"] == {"pass": 1, "fail": 1, "crash": 1, "hang": 1, "not offered": 1}
    assert facts["ok"] is False
    assert facts["cases"][2]["came"] == "that \0"
    (suite,) = ElementTree.fromstring(report.junit_xml(results))
    assert suite.attrib["tests"] == "5"
    assert (suite.attrib["failures"], suite.attrib["errors"], suite.attrib["skipped"]) == ("1", "2", "1")
    assert [[child.tag for child in case] for case in suite] == [
        [], ["skipped"], ["failure"], ["error"], ["error"],
    ]  # fmt: skip
    assert suite[2][0].attrib["message"] == "fail: expected <this>; that \ufffd"


def test_the_same_seed_makes_the_same_choices(serve):
    def drawn(seed: int) -> float:
        found = []

        def run_it(rig: RingRig) -> None:
            found.append(rig.random.random())
            raise NotOffered("enough")

        run(Aim(start=serve, seed=seed), Case("x.y", "x", "", "", frozenset(), (), run_it))
        return found[0]

    assert drawn(1) == drawn(1) != drawn(2)


class Dies:
    """A back-end that is gone when a descriptor is sent to it; ``sent`` is whose it was."""

    def done(self, name, payload=None, fds=()):
        self.sent = fds
        raise ConnectionLost("gone")


def test_what_a_back_end_did_not_live_to_take_is_closed():
    wire, closers = Dies(), []
    with pytest.raises(ConnectionLost):
        WireRig.backend_channel(SimpleNamespace(timeout_s=1, on_close=closers.append), wire)
    with pytest.raises(OSError):
        os.fstat(wire.sent[0])
    for close in closers:
        close()
