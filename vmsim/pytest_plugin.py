"""The cases of ``vmsim check``, and what they are made of, for the tests of a back-end's own repository.

pytest finds it by itself where vmsim is installed (entry point ``pytest11``). It needs the command that
starts the back-end: ``--vhost-user-start`` or the ini option ``vhost_user_start``. Until a test asks for one
of its fixtures nothing of vmsim is imported: it is loaded in every run of pytest, also where nobody wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from vmsim.check.case import Case
    from vmsim.check.frontend import Frontend
    from vmsim.check.outcome import Result
    from vmsim.check.rigs import GuestRig, PairRig, Rig
    from vmsim.check.target import Aim, Target
    from vmsim.guest.calls.posix import GuestFs
    from vmsim.machine import Machine

COMMAND_HELP: Final = (
    "Start a vhost-user-fs back-end with this: {socket} and {dir} stand for the socket's path and the shared "
    "directory, {options} for what some cases add."
)
TIMEOUT_S: Final = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("vmsim", "testing a vhost-user-fs back-end")
    group.addoption("--vhost-user-start", metavar="COMMAND", default=None, help=COMMAND_HELP)
    group.addoption(
        "--vhost-user-timeout", metavar="SECONDS", type=float, default=TIMEOUT_S,
        help=f"A back-end that is silent for so long hangs (default {TIMEOUT_S:g}).",
    )  # fmt: skip
    group.addoption(
        "--vmsim-cases", metavar="GLOB", action="append", default=[],
        help="Collect the cases of vmsim check so named as tests of their own; may be repeated.",
    )
    parser.addini("vhost_user_start", COMMAND_HELP, default="")


def _aim(config: pytest.Config) -> Aim | None:
    """How back-ends are started; None if nobody said."""
    from vmsim.check.target import Aim

    command = config.getoption("--vhost-user-start") or config.getini("vhost_user_start")
    if not command:
        return None
    # A test may be in another working directory (monkeypatch.chdir); the command was given in this one.
    timeout_s, cwd = config.getoption("--vhost-user-timeout"), str(config.invocation_params.dir)
    return Aim(start=str(command), timeout_s=timeout_s, cwd=cwd)


def _select(patterns: list[str]) -> list[Case]:
    """The cases so named, all of them if there are no patterns."""
    from vmsim.check.cases import CASES
    from vmsim.check.runner import select

    return select(CASES, patterns)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``vmsim_case`` runs once for every case that --vmsim-cases names (else all)."""
    if "vmsim_case" in metafunc.fixturenames:
        chosen = _select(metafunc.config.getoption("--vmsim-cases"))
        metafunc.parametrize("vmsim_case", chosen, ids=[case.id for case in chosen], indirect=True)


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the cases that --vmsim-cases names, unless a test takes them with ``vmsim_case``."""
    patterns = config.getoption("--vmsim-cases")
    if not patterns or any("vmsim_case" in getattr(item, "fixturenames", ()) for item in items):
        return
    cases = _select(patterns)
    if not cases:
        raise pytest.UsageError(f"no case of vmsim check is called {' or '.join(patterns)}")
    if _aim(config) is None:
        raise pytest.UsageError("--vmsim-cases needs --vhost-user-start COMMAND")
    items.extend(CaseItem.from_parent(session, name=case.id, case=case) for case in cases)


class CaseFailed(Exception):
    """A case that did not pass: ``result`` says what was expected and what came."""

    def __init__(self, result: Result) -> None:
        lines = [
            f"{result.id}: {result.outcome.value}: {result.summary}", f"expected: {result.expected}",
            f"came:     {result.came}", f"see:      {result.spec}", f"again:    {result.command}",
            result.said,
        ]  # fmt: skip
        super().__init__("\n".join(line for line in lines if line))
        self.result = result


class CaseItem(pytest.Item):
    """A case of ``vmsim check`` as a test."""

    def __init__(self, *, case: Case, **more: Any) -> None:
        super().__init__(**more)
        self.case = case

    def runtest(self) -> None:
        """Run the case; CaseFailed unless it passes, skipped if it is not offered."""
        from vmsim.check.runner import run_case
        from vmsim.check.target import Target

        aim = _aim(self.config)
        assert aim is not None
        target = Target(aim)
        try:
            _verdict(run_case(self.case, target))
        finally:
            target.close()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was expected and what came, without a traceback of ours."""
        if isinstance(excinfo.value, CaseFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it belongs in reports."""
        return self.path, None, f"vmsim check: {self.case.id}"


def _verdict(result: Result) -> Result:
    from vmsim.check.outcome import Outcome

    if result.outcome is Outcome.NOT_OFFERED:
        pytest.skip(result.reason)
    if result.outcome.bad:
        raise CaseFailed(result)
    return result


@pytest.fixture
def vhost_user_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Starts back-ends with the command of --vhost-user-start; skipped without one."""
    from vmsim.check.target import Target

    aim = _aim(request.config)
    if aim is None:
        pytest.skip("no back-end to test: give --vhost-user-start COMMAND, or set vhost_user_start")
    target = Target(aim)
    yield target
    target.close()


@pytest.fixture
def vmsim_case(request: pytest.FixtureRequest, vhost_user_target: Target) -> Callable[[], Result]:
    """A case of ``vmsim check``, one after the other: call it; it fails the test, skips it, or returns."""
    from vmsim.check.runner import run_case

    case: Case = request.param
    return lambda: _verdict(run_case(case, vhost_user_target))


def _case(request: pytest.FixtureRequest) -> Case:
    """The test that uses a fixture, as a case: it seeds what is random, and has no options."""
    from vmsim.check.case import Case

    return Case(request.node.nodeid, "pytest", "", "", frozenset(), (), lambda rig: None)


def _end(rig: Rig) -> None:
    """Give a rig's back-ends back; the test fails if one of them crashed."""
    lost = rig.lost
    deaths, said = rig.deaths(lost=lost), rig.said()
    rig.close()
    if deaths or lost:
        pytest.fail(f"{deaths or 'the back-end closed the connection'}\n{said}", pytrace=False)


@pytest.fixture
def vhost_frontend(request: pytest.FixtureRequest, vhost_user_target: Target) -> Iterator[Frontend]:
    """A front-end that is connected to a fresh back-end and past the negotiation."""
    from vmsim.check.rigs import WireRig

    rig = WireRig(vhost_user_target, _case(request))
    yield rig.wire
    _end(rig)


@dataclass
class Mounted:
    """A guest on a fresh back-end: ``fs`` with the functions of ``os``, and the directory on this host."""

    fs: GuestFs
    share: Path
    rig: GuestRig

    @property
    def vm(self) -> Machine:
        """The machine that the guest runs on now."""
        machine: Machine = self.rig.vm
        return machine


@dataclass
class MigratingPair(Mounted):
    """A guest that can go on in another instance on the same directory, as often as one likes."""

    rig: PairRig

    def migrate(self) -> GuestFs:
        """Migrate into a further instance: the guest's file system there. MigrationError: it stays here."""
        self.fs = self.rig.migrate()
        return self.fs


@pytest.fixture
def guest_mount(request: pytest.FixtureRequest, vhost_user_target: Target) -> Iterator[Mounted]:
    """A mounted guest: ``guest_mount.fs`` and ``guest_mount.share``."""
    from vmsim.check.rigs import GuestRig

    rig = GuestRig(vhost_user_target, _case(request))
    try:
        yield Mounted(rig.boot(), rig.share, rig)
    finally:
        _end(rig)


@pytest.fixture
def migrating_pair(request: pytest.FixtureRequest, vhost_user_target: Target) -> Iterator[MigratingPair]:
    """The same with ``migrate()``."""
    from vmsim.check.rigs import PairRig

    rig = PairRig(vhost_user_target, _case(request))
    try:
        yield MigratingPair(rig.boot(), rig.share, rig)
    finally:
        _end(rig)
