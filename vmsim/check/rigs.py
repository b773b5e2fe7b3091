"""What a case works with: a front-end alone, one with rings, a mounted guest, a pair to migrate between."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final

from vmsim.check.case import PAIR, SHARE, START, Case
from vmsim.check.device import USUAL, RawDriver
from vmsim.check.frontend import PLAIN, Frontend
from vmsim.check.outcome import NotOffered
from vmsim.check.target import Instance, Target
from vmsim.errors import HostError, VmsimError
from vmsim.guest.calls.posix import GuestFs
from vmsim.guest.config import GuestConfig
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.probe import Probe
from vmsim.host.vhost_user.transport import ConnectionLost, PeerSilent, VhostUserTransport
from vmsim.host.waits import FdWaits
from vmsim.machine import Machine
from vmsim.machine.parts import Seams
from vmsim.machine.remote import RemoteBackend
from vmsim.schedule.immediate import ImmediateSchedule

SLICE_NS: Final = 100_000_000
"""Between two looks at the process while nothing happens."""
ALTOGETHER: Final = 8
"""A case takes no longer than so many time limits."""


class Rig:
    """The part that all rigs share: instances of the back-end, and how they end."""

    def __init__(self, target: Target, case: Case) -> None:
        self.target = target
        self.case = case
        self.timeout_s = target.aim.timeout_s
        self.random = random.Random(f"{target.aim.seed}:{case.id}")
        self.instances: list[Instance] = []
        self._probes: list[tuple[Instance, Probe]] = []
        self._closers: list[Callable[[], object]] = []

    # -- instances

    def instance(self) -> Instance:
        """A fresh back-end, with the case's options if it starts with them."""
        if options := self.target.known(self.case.options):
            instance = self.target.take(options)
            try:
                instance.begun.wait_ready()
            except HostError:
                instance.close()
                self.target.drop(instance.folder)
                self.target.unknown.add(options)
            else:
                self.instances.append(instance)
                return instance
        found = self.target.take()
        self.instances.append(found)
        return found

    def another(self, *, elsewhere: bool = False) -> Instance:
        """A second process on the directory of the first, or on an empty one."""
        options = self.target.known(self.case.options)
        instance = self.target.another(self.instances[0], options, elsewhere=elsewhere)
        self.instances.append(instance)
        instance.begun.wait_ready()
        return instance

    def ended_by(self, number: int, which: int = 0) -> None:
        """We ended an instance by this signal: that is no crash."""
        self.instances[which].may_end = True
        self.instances[which].ended_by = number

    def front(self, instance: Instance, protocol: int | None = PLAIN) -> Frontend:
        """A connection to it; negotiated unless ``protocol`` is None."""
        probe = Probe(instance.connect(), self.timeout_s, instance.panic)
        self._probes.append((instance, probe))
        front = Frontend(probe)
        if protocol is not None:
            front.negotiate(protocol)
        return front

    def driver(self, front: Frontend, **kind: Any) -> RawDriver:
        """A driver of its own on a connection: memory and rings that the back-end has not heard of."""
        driver = RawDriver(front, **kind)
        self.on_close(driver.close)
        return driver

    def backend_channel(self, front: Frontend) -> Probe:
        """Give the back-end a channel for messages of its own; our end of it."""
        ours, theirs = UnixSocket.pair()
        probe = Probe(ours, self.timeout_s)
        self.on_close(probe.close)
        with closing(theirs):
            front.done("SET_BACKEND_REQ_FD", None, (theirs.fd,))
        return probe

    def on_close(self, act: Callable[[], object]) -> None:
        """Have ``act`` called at the end, the last first."""
        self._closers.append(act)

    def hang_up(self, instance: Instance) -> None:
        """Close our connections to it; it may end."""
        instance.may_end = True
        for owner, probe in self._probes:
            if owner is instance:
                probe.close()

    # -- the shared directory

    @property
    def share(self) -> Path:
        """The directory on this host in which the case may do what it likes."""
        folder = self.instances[0].folder
        if not folder:
            raise NotOffered("the shared directory is not known: use --shared-dir, or --start")
        return Path(folder)

    @property
    def home(self) -> str:
        """The same directory as the guest sees it."""
        return self.instances[0].home

    # -- the end

    @property
    def lost(self) -> bool:
        """Whether a connection that we did not close is gone."""
        return any(probe.lost for instance, probe in self._probes if not instance.may_end)

    def panic(self) -> str:
        """What a thread of a back-end said that ended by a mistake; empty if none did."""
        return next(filter(None, (instance.panic() for instance in self.instances)), "")

    def deaths(self, *, lost: bool = False) -> str:
        """Which back-ends ended that should not have; empty if none did. ``lost``: one is about to end."""
        ends = (instance.panic() or instance.death(lost=lost) for instance in self.instances)
        return "; ".join(filter(None, ends))

    def said(self) -> str:
        """What the back-ends printed last."""
        return "\n".join(filter(None, (instance.said() for instance in self.instances)))

    def close(self) -> None:
        """Give everything back, and end the instances."""
        while self._closers:
            self._closers.pop()()
        for _, probe in self._probes:
            probe.close()
        for instance in self.instances:
            instance.close()
        for folder in {instance.folder for instance in self.instances}:
            self.target.drop(folder)


class WireRig(Rig):
    """A front-end alone: ``front`` is connected and, with ``negotiated``, past the beginning."""

    negotiated: ClassVar[bool] = True

    def __init__(self, target: Target, case: Case) -> None:
        super().__init__(target, case)
        self.wire = self.front(self.instance(), PLAIN if self.negotiated else None)


class BareRig(WireRig):
    """A front-end that is connected and has said nothing yet."""

    negotiated = False


class RingRig(WireRig):
    """A front-end with rings: ``device()`` makes and starts them."""

    def device(self, *, features: int = USUAL, size: int = 64, init: bool = True) -> RawDriver:
        """Rings that run, and a FUSE session."""
        device = self.idle_device(features=features, size=size).start()
        if init:
            device.init()
        return device

    def idle_device(self, **kind: Any) -> RawDriver:
        """Memory and rings that the back-end has not heard of."""
        return self.driver(self.wire, **kind)


class _Waits(FdWaits):
    """Looks at the back-end while it waits, and ends a case that goes on for ever though it is answered."""

    def __init__(self, timeout_s: float, trouble: Callable[[], str]) -> None:
        super().__init__(patience_ns=int(timeout_s * 1e9))
        self._trouble = trouble
        self._until_ns = time.monotonic_ns() + int(ALTOGETHER * timeout_s * 1e9)
        self._limit_ns = int(timeout_s * 1e9)

    def idle(self, deadline_ns: int | None) -> bool:
        """As any, in slices."""
        now_ns = time.monotonic_ns()
        limit_ns = min(now_ns + self._limit_ns if deadline_ns is None else deadline_ns, self._until_ns)
        while True:
            if super().idle(min(limit_ns, now_ns + SLICE_NS)):
                return True
            if trouble := self._trouble():
                raise ConnectionLost(trouble)
            now_ns = time.monotonic_ns()
            if now_ns >= self._until_ns:
                raise PeerSilent("the case takes too long")
            if now_ns >= limit_ns:
                return False


class _Remote(RemoteBackend):
    """A machine's back-end in another process, for not longer than the time limit."""

    link: VhostUserTransport | None = None

    def __init__(self, rig: GuestRig, instance: Instance) -> None:
        super().__init__(instance.process or rig.target.aim.socket, instance.folder, rig.schedule)
        self.rig = rig
        self.instance = instance

    def _reach(self) -> UnixSocket:
        return self.instance.connect()

    def _talk_over(self, connection: UnixSocket) -> VhostUserTransport:
        self.link = VhostUserTransport(
            connection, self._messages, self.rig.waits, timeout_ns=int(self.rig.timeout_s * 1e9)
        )
        return self.link

    def close(self) -> None:
        """The rig ends the process."""


class GuestRig(Rig):
    """A mounted guest: ``fs`` has the functions of ``os``, in ``home``; ``vm`` is its machine."""

    def __init__(self, target: Target, case: Case) -> None:
        super().__init__(target, case)
        self.waits = _Waits(self.timeout_s, self.panic)
        self.schedule = ImmediateSchedule(descriptors=self.waits)
        self.remotes: list[_Remote] = []
        self.vm: Any = None
        self.instance()

    def boot(self, *, guest: GuestConfig | None = None, ring: str = "split", **changes: Any) -> GuestFs:
        """Start a machine on the back-end and mount; again in later calls is an error."""
        remote = _Remote(self, self.instances[0])
        self.remotes.append(remote)
        self.vm = Machine(
            self.share, schedule=self.schedule, backend=remote, guest=guest, ring=ring,
            seams=Seams(start=lambda *_: self.next_remote()), **{"memory": "8M", **changes},
        )  # fmt: skip
        self.on_close(lambda: self.vm.close())
        return self.mount()

    def next_remote(self) -> _Remote:
        """A back-end for a destination: only pairs have one."""
        raise NotOffered("needs two instances: use --start")

    def mount(self, pid: int = 1) -> GuestFs:
        """The directory as a process of the guest sees it."""
        fs: GuestFs = self.vm.mount(pid)
        fs.chdir(self.home)
        return fs

    @property
    def lost(self) -> bool:
        """Whether a connection that we did not close is gone."""
        closed = "the back-end closed the connection"
        return super().lost or any(
            remote.link is not None and remote.link.lost == closed and not remote.instance.may_end
            for remote in self.remotes
        )

    def close(self) -> None:
        """Give everything back."""
        for instance in self.instances:
            instance.may_end = True
        super().close()


class PairRig(GuestRig):
    """A mounted guest and further instances on the same directory, into which it migrates."""

    def __init__(self, target: Target, case: Case) -> None:
        super().__init__(target, case)
        self._next: Instance | None = self.another()
        self._at: _Remote

    def boot(self, **kind: Any) -> GuestFs:
        """Start a machine on the first instance, and mount."""
        fs = super().boot(**kind)
        self._at = self.remotes[0]
        return fs

    def next_remote(self) -> _Remote:
        """The next instance."""
        instance = self._next or self.another()
        self._next = None
        remote = _Remote(self, instance)
        self.remotes.append(remote)
        return remote

    def next_elsewhere(self) -> None:
        """Let the next instance share an empty directory."""
        self._next = self.another(elsewhere=True)

    def kill_next(self) -> None:
        """Kill the next instance before the guest comes."""
        instance = self._next = self._next or self.another()
        assert instance.process is not None
        instance.process.kill()
        self.ended_by(signal.SIGKILL, self.instances.index(instance))

    def migrate(self) -> GuestFs:
        """Migrate into the next instance: the guest goes on there; MigrationError if it stays here."""
        source = self._at
        fs: GuestFs = self.vm.mount()
        try:
            self.vm = self.vm.migrate()
        except VmsimError:
            if self.remotes[-1] is not source:
                self.remotes.pop().instance.may_end = True  # we hung up
            raise
        source.instance.may_end = True
        self._at = self.remotes[-1]
        return fs


def missing(case: Case, target: Target) -> str:
    """Which of its needs cannot be met; empty if they all can."""
    aim = target.aim
    if START in case.needs and not aim.start:
        return "needs instances of its own: use --start"
    if PAIR in case.needs and not aim.start:
        return "needs two instances: use --start"
    if SHARE in case.needs and not (aim.start or aim.shared_dir):
        return "the shared directory is not known: use --shared-dir, or --start"
    return ""
