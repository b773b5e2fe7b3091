"""One seed, one voyage: a guest works, its machine moves on again and again, an oracle compares everything.

Several programs run at once in one guest: two that do random file operations in folders of their own and
compare every answer with a model (:mod:`vmsim.workload.campaign`), and two that fight for a lock around a
counter. The machine meanwhile migrates from one kind of machine to the next, is cancelled, loses its channel,
rests in a file. Everything, the machine's make included, is drawn from the seed, under the seeded schedule.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
from typing import Any, Final, NamedTuple

from tests.simulation.cargo import OTHER, Cargo, VoyageSchedule
from tests.support.exhibits import KINDS, exhibit
from tests.support.inventory import changes, inventory
from tests.support.machine_rig import HANDLES_ALLOWED
from vmsim.errors import MigrationError, StateError
from vmsim.guest.config import DRIVER_FEATURES, GuestConfig
from vmsim.machine import Machine, Seams
from vmsim.migration.report import MigrationParameters
from vmsim.trace import NOWHERE, Source
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_NOTIFICATION_DATA
from vmsim.workload.campaign import Campaign
from vmsim.workload.fileapi import OsFiles
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel, FaultyTransport

TURNS_MAX: Final = 2_000_000
MIB: Final = 1 << 20
STEPS: Final = 15
"""Operations of each program in one leg."""
REALTIME_NS: Final = 1_700_000_000_000_000_000
FORGET_TURNS: Final = 100
ROOM_FOR_TWO: Final = 16
CURATOR: Final = 7
EXHIBITS: Final = 3
"""Kinds of files of a voyage, each named and unlinked."""
REPRO: Final = "VMSIM_SEEDS={seed} tools/test tests/simulation/test_voyages.py"


class Plan(NamedTuple):
    """What the seed made of the machine."""

    arguments: dict[str, Any]
    guest: GuestConfig
    legs: int

    @property
    def keeps_handles(self) -> bool:
        """Whether files are found again by handle, which a file without a name and a descriptor has not."""
        return bool(self.arguments["options"]["migration_mode"] == "file-handles")

    def __str__(self) -> str:
        facts = {name: value for name, value in self.arguments.items() if name != "memory"}
        facts |= {"cache": self.guest.cache, "dentries": self.guest.dentries, "legs": self.legs}
        return " ".join(f"{name}={value}" for name, value in facts.items())


def draw_plan(numbers: random.Random) -> Plan:
    """All kinds of machines, small ones preferred: bounds are where things break."""
    choose = numbers.choice
    cache = choose(("none", "none", "writethrough", "writeback"))
    ring = choose(("split", "packed"))
    size = choose((8, 16, 64))
    mode = choose(("find-paths", "find-paths", "file-handles" if HANDLES_ALLOWED else "find-paths"))
    paths = mode == "find-paths"
    options = {
        "migration_mode": mode, "writeback": cache == "writeback",
        "cache": choose(("auto", "never", "always")),
        "migration_confirm_paths": paths and choose((True, False)),
        "migration_verify_handles": paths and choose((True, False)),
        "inode_file_handles": "prefer" if not paths else choose(("prefer", "never")),
        "posix_acl": False, "readdirplus": choose((True, True, False)),
        "inode_fds": choose((0, 0, 20)),
    }  # fmt: skip
    features = DRIVER_FEATURES
    for bit in (F_EVENT_IDX, F_NOTIFICATION_DATA, F_IN_ORDER):
        features &= ~choose((0, bit))
    guest = GuestConfig(
        features=features, queue_size=choose((128, 6 if ring == "packed" else 8)), slots=choose((2, 8, 64)),
        indirect=choose((True, False)), linux_chains=choose((True, False)),
        cache=cache, cache_pages=choose((4, 16, 64)), dentries=choose((0, 3, 32, 256)),
        readahead_pages=choose((1, 4, 16)), max_transfer=choose((4096, 16384, 65536)),
        realtime_ns=REALTIME_NS, readdirplus=choose((True, False)), batch_forget=choose((True, False)),
        forget_batch=choose((1, 4, 32)),
    )  # fmt: skip
    arguments = {
        "memory": choose(([(0, 2 * MIB)], [(0, MIB), (4 * MIB, MIB)], [(1 << 32, 2 * MIB)])), "ring": ring,
        "queues": choose((1, 1, 2, 4)), "queue_size": size, "dialect": choose(("upstream", "rfc2023")),
        "migration": choose(("internal",) * 5 + ("external",)), "options": options,
    }  # fmt: skip
    return Plan(arguments, guest, numbers.randint(2, 4))


class Below:
    """A part of a file system, as a whole one: absolute paths begin at ``root``."""

    PATHS: Final = {"rename": (0, 1), "link": (0, 1), "symlink": (1,)}
    HANDLES: Final = {"close", "read", "write", "pread", "pwrite", "lseek", "fstat", "ftruncate", "fsync"}

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._fs, name)
        if name in self.HANDLES:
            return method
        where = self.PATHS.get(name, (0,))

        def call(*words: Any) -> Any:
            return method(*(self._root + word if at in where else word for at, word in enumerate(words)))

        return call


class Trouble(FaultPlan):
    """The faults of one machine's seams: none unless a hop asks for one. What is cut stays cut."""

    def __init__(self, trace: Source, parked: dict[int, int]) -> None:
        """``parked``: put there how many requests a back-end keeps for a ring that it stopped."""
        super().__init__(trace=trace)
        self._numbers_given = itertools.count(1)
        self._parked = parked

    def arm(self, *faults: Fault) -> None:
        """From now on, count the operations, and let this happen."""
        cut = self._cut
        FaultPlan.__init__(self, faults, trace=self._trace)
        self._cut = cut

    def wrap(self, seams: Seams) -> Seams:
        """``seams`` with this around them; every connection and channel is a seam of its own."""
        transport, channel, backend = seams.transport, seams.channel, seams.backend
        seams.transport = lambda inner: FaultyTransport(
            transport(inner), self, f"vhost {next(self._numbers_given)}"
        )
        seams.channel = lambda inner, side: FaultyChannel(
            channel(inner, side), self, f"channel {side} {next(self._numbers_given)}"
        )
        seams.backend = lambda inner: backend(self._watched(inner))
        return seams

    def _watched(self, device: Any) -> Any:
        keep = device.keep_parked

        def keep_parked(ring: int, state: Any) -> None:
            self._parked[ring] = len(state.in_flight) if state is not None else 0
            keep(ring, state)

        device.keep_parked = keep_parked
        return device


class Locker:
    """Adds to a counter in a file, which only a lock around it keeps right."""

    def __init__(self, schedule: VoyageSchedule, name: str, *, patient: bool) -> None:
        self._schedule = schedule
        self._numbers = schedule.rng(name)
        self._patient = patient
        self.added = 0

    def work(self, fs: Any, times: int) -> None:
        fd = fs.open("/counter", os.O_RDWR)
        flocks = self._numbers.random() < 0.5
        for _ in range(times):
            # Only this lock excludes the other program; flock does nothing to it, and travels all the same.
            self._lock(fs, fd)
            if flocks:
                fs.flock(fd, fcntl.LOCK_SH)
            value = int(fs.pread(fd, 20, 0) or b"0")
            for _ in range(self._numbers.randrange(4)):
                self._schedule.checkpoint("the locker dawdles")
            fs.pwrite(fd, b"%d" % (value + 1), 0)
            self.added += 1
            fs.setlk(fd, fcntl.F_UNLCK, 0, 0)
        fs.close(fd)

    def _lock(self, fs: Any, fd: int) -> None:
        while True:
            try:
                return fs.setlk(fd, fcntl.F_WRLCK, 0, 0, wait=self._patient)
            except BlockingIOError:
                self._schedule.checkpoint("the locker tries again")


class Voyage:
    """Runs one seed; raises whatever is wrong, with the command that shows it again.

    ``seams`` gives the wrappers of the machine of a name; ``fault`` strikes at the source of the first hop.
    """

    def __init__(
        self, seed: int, share: Any, *, repro: str = REPRO, seams: Any = None, trace: Source = NOWHERE,
        fault: Fault | None = None,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.share = os.fspath(share)
        self.schedule = VoyageSchedule(seed, turns_max=TURNS_MAX, trace=trace)
        self._trace = trace
        self._first_fault = fault
        self.numbers = self.schedule.rng("voyage")
        self.plan = draw_plan(self.numbers)
        self.repro = repro.format(seed=seed)
        self.programs: dict[int, tuple[str, Campaign]] = {}
        # A request that waits for a lock keeps its place in the ring: the one that unlocks must fit beside
        # it, and be answered before it.
        guest = self.plan.guest
        size = min(guest.queue_size, self.plan.arguments["queue_size"])
        patient = size >= ROOM_FOR_TWO and not guest.features & F_IN_ORDER
        self.lockers = [Locker(self.schedule, f"locker {number}", patient=patient) for number in (1, 2)]
        self.parked: dict[int, int] = {}
        self.cargo = Cargo(self.schedule, self.share)
        self.hops: list[str] = []
        self._seams = seams or (lambda where: Seams())
        self._names = 0
        self.exhibits: list[int] = []
        self.newest: Machine | None = None
        """Whoever fails after a hop does so with a machine that ``run`` does not know yet."""

    def run(self) -> None:
        """All legs; the share must be empty."""
        os.mkdir(self.share + "/one")
        os.mkdir(self.share + "/two")
        with open(self.share + "/counter", "wb"):
            pass
        machine = Machine(
            self.share, schedule=self.schedule, guest=self.plan.guest, seams=self._wrappers(),
            **self.plan.arguments,
        )  # fmt: skip
        self.trouble = self._latest
        try:
            for pid, folder in ((1, "/one"), (2, "/two")):
                self.programs[pid] = (folder, Campaign(self.seed * 2 + pid, repro=self.repro))
            kinds = sorted(self.numbers.sample(KINDS, EXHIBITS), key=KINDS.index)
            self.exhibits = exhibit(machine.mount(CURATOR), "/exhibits", kinds)
            for leg in range(self.plan.legs):
                machine = self._leg(machine)
                self._check(machine)
                machine = self._carry(machine, leg)
                if self.numbers.random() < 0.15:
                    machine = self._rest(machine, leg)
            self._end(machine)
        except BaseException as error:
            error.add_note(f"seed {self.seed}: {self.plan}")
            error.add_note(f"hops: {', '.join(self.hops) or 'none'}")
            error.add_note(f"see it again with: {self.repro}")
            raise
        finally:
            self.schedule.close()
            machine.close()
            if self.newest is not None:
                self.newest.close()
            self.cargo.close()

    # Legs

    def _leg(self, machine: Machine) -> Machine:
        """Programs work, and meanwhile the machine moves on."""
        tasks = []
        for pid, (folder, campaign) in self.programs.items():
            run = lambda fs, folder=folder, campaign=campaign: campaign.run(Below(fs, folder), STEPS)  # noqa: E731
            tasks.append(machine.spawn(f"program {pid}", run, pid=pid))
        for pid, locker in enumerate(self.lockers, 3):
            times = self.numbers.randrange(3)
            work = lambda fs, it=locker, times=times: it.work(fs, times)  # noqa: E731
            tasks.append(machine.spawn(f"locker {pid}", work, pid=pid))
        for _ in range(self.numbers.choice((1, 1, 2))):
            self.schedule.sleep_ns(self.numbers.randrange(300_000))
            machine = self._hop(machine)
        for task in tasks:
            self.schedule.wait(lambda task=task: task.done, f"the end of {task.name}")
            task.result()
        return machine

    def _carry(self, machine: Machine, leg: int) -> Machine:
        """The machine moves with cargo: both kinds in each voyage, and the second time not externally."""
        cargo = self.cargo
        if leg:
            machine.migration = "internal"
        cargo.load(machine, wait=not leg % 2)
        # A request that waits may hold up those that follow in its ring: then nobody can look.
        before = None if cargo.waits else inventory(machine, without=(OTHER,))
        left = len(self.hops)
        machine = self._hop(machine, "go" if leg < 2 else "")
        if self.hops[left].endswith("went"):
            cargo.arrived(sum(self.parked.values()))
        cargo.check(machine)
        if before is not None:
            self._check_files(before, machine)
        cargo.unload(machine)
        return machine

    def _hop(self, machine: Machine, kind: str = "") -> Machine:
        """A migration: mostly one that succeeds, else one after which the source has to go on."""
        kind = kind or self.numbers.choice(("go", "go", "go", "cancel", "fault"))
        on_progress = lambda report, machine=machine: self.cargo.progress(machine, report)  # noqa: E731
        seams, here, there = self._wrappers(), self.trouble, self._latest
        if self._first_fault is not None:
            kind = "fault"
            here.arm(self._first_fault)
            self._first_fault = None
        elif kind == "fault":
            self.numbers.choice((here, there)).arm(self._fault())
        elif kind == "cancel":
            on_progress = self._canceller(machine, self.numbers.randrange(1, 12))
        try:
            machine = machine.migrate(parameters=self._parameters(), seams=seams, progress=on_progress)
        except MigrationError as error:
            if kind == "go":
                raise
            self.hops.append(f"{kind}: failed, {error.side} {error.step}")
        else:
            self.newest = machine
            self.trouble = there
            self.hops.append(f"{kind}: went")
        finally:
            here.arm()
            there.arm()
            self.schedule.late = False
        return machine

    def _parameters(self) -> MigrationParameters:
        numbers = self.numbers
        return MigrationParameters(
            bandwidth=numbers.choice((None, 512 * MIB, 4096 * MIB)), part_bytes=numbers.choice((4096, 65536)),
            downtime_limit_ns=numbers.choice((0, 50_000, 1_000_000)), max_rounds=numbers.choice((1, 3, 8)),
        )

    def _fault(self) -> Fault:
        seam, operations, reach = self.numbers.choice((("channel *", "*", 60), ("vhost *", "[A-Z]*", 40)))
        kind = self.numbers.choice(("fail", "lose", "cut"))
        return Fault(seam, operations, self.numbers.randrange(1, reach), kind)

    def _canceller(self, machine: Machine, number: int) -> Any:
        reports = 0

        def progress(report: Any) -> None:
            nonlocal reports
            self.cargo.progress(machine, report)
            reports += 1
            if reports == number:
                try:
                    machine.cancel()
                except StateError:
                    pass  # too late

        return progress

    def _wrappers(self) -> Seams:
        """The seams of the next machine."""
        self._names += 1
        self._latest = Trouble(self._trace, self.parked)
        return self._latest.wrap(self._seams(f"vm{self._names}"))

    def _rest(self, machine: Machine, leg: int) -> Machine:
        """The machine stays in a file for a while: nobody then keeps unlinked files but the file itself."""
        if self.plan.arguments["migration"] != "internal" or self.plan.keeps_handles:
            return machine
        path = f"{self.share}.{leg}.vmsim"
        before = inventory(machine)
        machine.save(path, keep_running=False)
        machine.close()
        self.hops.append("file")
        self.newest = machine = Machine.restore(
            path, share=self.share, schedule=self.schedule, seams=self._wrappers(), realtime_ns=REALTIME_NS
        )
        os.unlink(path)
        self.trouble = self._latest
        self._check_files(before, machine)
        return machine

    # Looking

    def _check_files(self, before: dict[str, Any], machine: Machine) -> None:
        """Each file that the guest knows is what it was before the hop, attribute by attribute."""
        found = changes(before, inventory(machine))
        assert not found, "\n".join(["files are not what they were:", *found])

    def _check(self, machine: Machine) -> None:
        """Everything is as the models say, as the guest sees it."""
        for pid, (folder, campaign) in self.programs.items():
            campaign.check(Below(machine.mount(pid), folder))
        fs = machine.mount()
        fd = fs.open("/counter", os.O_RDONLY)
        found = int(fs.pread(fd, 20, 0) or b"0")
        fs.close(fd)
        added = sum(locker.added for locker in self.lockers)
        assert found == added, f"the counter is {found}, after {added} additions under a lock"

    def _end(self, machine: Machine) -> None:
        """Everything is as the models say, as the host sees it; nothing stays behind in the server."""
        machine.mount().sync()
        for pid, (folder, campaign) in self.programs.items():
            campaign.check_tree(OsFiles(self.share + folder))
            campaign.close(Below(machine.mount(pid), folder))
        curator = machine.mount(CURATOR)
        for fd in self.exhibits:
            curator.close(fd)
        machine.mount().drop_caches()
        for _ in range(FORGET_TURNS):
            machine.kernel.arm_interrupts()  # nobody waits for FORGETs
            self.schedule.settle()
        facts = machine.facts()
        assert facts["handles"] == 0, facts
        assert facts["requests"] == 0, facts

