"""Migration while the guest works: rounds, budgets, cancelling, requests in flight, many hops."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import ALL_KINDS, FEW_KINDS, Kind, Life, make
from vmsim.errors import MigrationCancelled, MigrationError, StateError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine, Seams
from vmsim.machine.states import FINISHED, RUNNING
from vmsim.migration.report import MigrationParameters
from vmsim.schedule.seeded import SeededSchedule
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

BOTH = F_EVENT_IDX | F_INDIRECT_DESC
CACHED = GuestConfig(cache="writeback", cache_pages=32, dentries=64)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
def test_everything_survives_in_every_kind_of_machine(tmp_path, kind):
    with no_leaks():
        vm = make(tmp_path, kind)
        life = Life(vm)
        for _ in range(3):
            before, vm = vm, vm.migrate()
            assert before.state == FINISHED
            life.check(vm)
            life.go_on(vm)
            before.close()
        life.finish(vm)
        vm.close()


def test_dozens_of_hops_back_and_forth(tmp_path):
    schedule = SeededSchedule(3)
    with no_leaks():
        vm = make(tmp_path, FEW_KINDS[2], schedule=schedule)
        life = Life(vm)
        sizes = []
        for hop in range(40):
            before, vm = vm, vm.migrate(migration="internal")
            before.close()
            life.go_on(vm)
            if hop % 10 == 9:
                life.check(vm)
            sizes.append(vm.migration_stats.section_bytes["vmsim/guest"])
        life.check(vm)
        life.finish(vm)
        assert max(sizes) - min(sizes) < 32, "nothing piles up in what travels"
        vm.close()


# Cancelling


def reports_of(tmp_path, kind: Kind) -> int:
    reports = []
    with make(tmp_path, kind) as vm:
        Life(vm)
        vm.migrate(progress=reports.append).close()
    return len(reports)


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_cancel_at_every_report(tmp_path, kind):
    (tmp_path / "count").mkdir()
    count = reports_of(tmp_path / "count", kind)
    assert count > 5
    share = tmp_path / "share"
    share.mkdir()
    cancelled = 0
    with no_leaks():
        vm = make(share, kind)
        life = Life(vm)
        for number in range(count):
            seen = []

            def progress(report, seen=seen, number=number, vm=vm):
                seen.append(report)
                if len(seen) == number + 1:
                    if report.phase in ("commit", "done"):
                        with pytest.raises(StateError):
                            vm.cancel()
                    else:
                        vm.cancel()

            try:
                before, vm = vm, vm.migrate(progress=progress)
                before.close()
            except MigrationCancelled:
                cancelled += 1
                assert vm.state == RUNNING
            life.check(vm)
            life.go_on(vm)
        assert cancelled >= count - 1
        life.finish(vm)
        vm.close()
    with pytest.raises(StateError, match="no migration"):
        vm.cancel()


def test_cancel_by_another_activity_at_any_turn(tmp_path):
    """Seeded: the canceller comes in between at an arbitrary point."""
    ends = set()
    for seed in range(12):
        share = tmp_path / str(seed)
        share.mkdir()
        schedule = SeededSchedule(seed)
        vm = make(share, FEW_KINDS[seed % 4], schedule=schedule)
        life = Life(vm)
        delay = schedule.rng("cancel").randrange(40) * 1000

        def cancel(vm=vm, schedule=schedule, delay=delay):
            schedule.wait(lambda: vm.outgoing is not None, "the migration")
            schedule.sleep_ns(delay)
            if vm.outgoing is not None:
                try:
                    vm.outgoing.cancel()
                except StateError:
                    return "too late"
            return "cancelled"

        task = schedule.spawn("canceller", cancel)
        try:
            before, vm = vm, vm.migrate(parameters=MigrationParameters(part_bytes=16384))
            before.close()
            ends.add("migrated")
        except MigrationCancelled:
            ends.add("cancelled")
            schedule.join(task)
        life.check(vm)
        life.finish(vm)
        schedule.close()
        vm.close()
    assert ends == {"migrated", "cancelled"}


def test_a_progress_callback_that_raises_fails_the_migration_and_nothing_else(tmp_path):
    def progress(report):
        if report.phase == "device":
            raise ZeroDivisionError

    with no_leaks(), make(tmp_path) as vm:
        life = Life(vm)
        with pytest.raises(ZeroDivisionError):
            vm.migrate(progress=progress)
        life.check(vm)
        vm2 = vm.migrate()
        life.check(vm2)
        life.finish(vm2)
        vm2.close()


def test_one_migration_at_a_time(tmp_path):
    refused = []

    def progress(report):
        if report.phase == "precopy":
            for act in (vm.migrate, vm.pause, lambda: vm.save(tmp_path / "file")):
                try:
                    act()
                except StateError as error:
                    refused.append(str(error))

    with make(tmp_path) as vm:
        vm2 = vm.migrate(progress=progress)
        assert len(refused) >= 3
        assert set(refused) == {"a migration is under way"}
        vm2.close()
        for act in (vm.migrate, vm.mount, lambda: vm.save(tmp_path / "file")):
            with pytest.raises(StateError, match="finished"):
                act()
    assert not list(tmp_path.glob("*file*")), "nothing was begun"


# Rounds


class Writer:
    """A guest program that writes files until it is told to stop; the page cache keeps what it wrote."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stop = False
        self.steps = 0
        self.fd = -1

    def __call__(self, fs):
        self.fd = fs.open(self.name, os.O_RDWR | os.O_CREAT)
        while not self.stop:
            fs.pwrite(self.fd, b"%06d" % self.steps, self.steps % 5 * 4096)
            self.steps += 1
            fs.kernel.schedule.checkpoint("writer")

    def check(self, fs):
        for page in range(min(5, self.steps)):
            last = (self.steps - 1 - page) // 5 * 5 + page
            assert fs.pread(self.fd, 6, page * 4096) == b"%06d" % last


@pytest.mark.parametrize("guest", [GuestConfig(), CACHED], ids=["direct", "writeback"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_guest_works_during_the_rounds(tmp_path, ring, guest):
    schedule = SeededSchedule(11)
    options = {"writeback": guest.cache == "writeback"}
    vm = make(tmp_path, schedule=schedule, ring=ring, guest=guest, queues=2, options=options)
    writers = [Writer(f"/w{number}") for number in range(3)]
    tasks = [vm.spawn(w.name, w, pid=2 + n) for n, w in enumerate(writers)]
    schedule.wait(lambda: all(w.steps > 3 for w in writers), "the writers to begin")
    parameters = MigrationParameters(
        part_bytes=4096, bandwidth=100_000_000, downtime_limit_ns=100_000, max_rounds=6
    )
    for _ in range(3):
        steps = [w.steps for w in writers]
        before, vm = vm, vm.migrate(parameters=parameters)
        before.close()
        stats = vm.migration_stats
        assert len(stats.rounds) > 1
        assert stats.rounds[0].dirty_bytes > 0
        assert all(now > then for now, then in zip([w.steps for w in writers], steps, strict=True))
        here = [w.steps for w in writers]
        schedule.wait(lambda here=here: all(w.steps > n for w, n in zip(writers, here, strict=True)), "more")
    for writer in writers:
        writer.stop = True
    for task in tasks:
        schedule.join(task)
    for number, writer in enumerate(writers):
        writer.check(vm.mount(2 + number))
        vm.mount(2 + number).fsync(writer.fd)
        content = (tmp_path / writer.name[1:]).read_bytes()
        assert content[(writer.steps - 1) % 5 * 4096 :][:6] == b"%06d" % (writer.steps - 1)
    vm.close()


def test_a_guest_that_never_rests_is_stopped_or_the_migration_fails(tmp_path):
    schedule = SeededSchedule(5)
    vm = make(tmp_path, schedule=schedule)
    writer = Writer("/w")
    task = vm.spawn("writer", writer, pid=2)
    schedule.wait(lambda: writer.steps > 3, "the writer")
    impatient = {"part_bytes": 4096, "bandwidth": 10_000_000, "downtime_limit_ns": 1, "max_rounds": 3}
    with pytest.raises(MigrationError, match="3 rounds") as caught:
        vm.migrate(parameters=MigrationParameters(stop_when_diverging=False, **impatient))
    assert (caught.value.step, caught.value.side) == ("precopy", "source")
    here = writer.steps
    schedule.wait(lambda: writer.steps > here + 3, "the writer goes on")
    before, vm = vm, vm.migrate(parameters=MigrationParameters(**impatient))
    before.close()
    assert len(vm.migration_stats.rounds) == 3
    assert not vm.migration_stats.converged
    writer.stop = True
    schedule.join(task)
    writer.check(vm.mount(2))
    vm.close()


def test_dirty_pages_that_exist_nowhere_else(tmp_path):
    """Written back only after the second hop: until then the bytes are in guest memory alone."""
    with no_leaks():
        vm = make(tmp_path, guest=CACHED, options={"writeback": True})
        fs = vm.mount()
        fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
        fs.write(fd, b"only in memory" * 1000)
        assert (tmp_path / "f").read_bytes() == b""
        for _ in range(2):
            before, vm = vm, vm.migrate()
            before.close()
        assert (tmp_path / "f").read_bytes() == b""
        fs = vm.mount()
        assert fs.fstat(fd).st_size == 14000
        assert fs.pread(fd, 14, 14 * 500) == b"only in memory"
        fs.close(fd)
        assert (tmp_path / "f").read_bytes() == b"only in memory" * 1000
        vm.close()


# Requests in flight


@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
def test_requests_in_flight_find_their_callers_at_the_destination(tmp_path, kind):
    with no_leaks():
        vm = make(tmp_path, kind, queues=2)
        fs = vm.mount()
        fd = fs.open("/lock", os.O_RDWR | os.O_CREAT)
        fs.setlk(fd, fcntl.F_WRLCK, 0, 0)
        ends = {}

        def wait_for_it(fs):
            own = fs.open("/lock", os.O_RDWR)
            try:
                fs.setlk(own, fcntl.F_WRLCK, fs.pid * 10, 1, wait=True)
            except OSError as error:
                ends[fs.pid] = error.errno
            else:
                ends[fs.pid] = 0

        tasks = [vm.spawn(f"waiter {pid}", wait_for_it, pid=pid) for pid in range(2, 9)]
        vm.schedule.settle()
        assert len(vm.kernel.requests) == 7
        for _ in range(2):
            before, vm = vm, vm.migrate()
            before.close()
            assert vm.arrived_requests == 7
            assert ends == {}
        assert vm.kernel.send_interrupt(3) == 1
        vm.schedule.wait(lambda: tasks[1].done, "the interrupted one")
        assert ends == {3: errno.EINTR}
        vm.mount().setlk(fd, fcntl.F_UNLCK, 0, 0)
        for task in tasks:
            vm.schedule.wait(lambda task=task: task.done, "the others")
            task.result()
        assert ends == {pid: errno.EINTR if pid == 3 else 0 for pid in range(2, 9)}
        vm.close()


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_a_waiting_request_is_interrupted_between_two_failed_migrations(tmp_path, kind):
    def refuse(report):
        if report.phase == "ready":
            vm.cancel()

    vm = make(tmp_path, kind)
    life = Life(vm)
    with pytest.raises(MigrationCancelled):
        vm.migrate(progress=refuse)
    vm.kernel.send_interrupt(2)
    with pytest.raises(InterruptedError):
        vm.schedule.join(life.waiter)
    vm.close()


# Rings


@pytest.mark.parametrize(
    "features",
    [0, F_EVENT_IDX, F_INDIRECT_DESC, BOTH, BOTH | F_IN_ORDER],
    ids=["plain", "event_idx", "indirect", "both", "in order"],
)
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_ring_features(tmp_path, ring, features):
    wanted = F_VERSION_1 | features | (F_RING_PACKED if ring == "packed" else 0)
    guest = GuestConfig(features=wanted, indirect=bool(features & F_INDIRECT_DESC))
    with no_leaks():
        vm = make(tmp_path, ring=ring, guest=guest, queues=3)
        life = Life(vm)
        for _ in range(3):
            before, vm = vm, vm.migrate()
            before.close()
            assert vm.device.virtio.features_accepted == wanted
            for _ in range(15):
                life.go_on(vm)
            life.check(vm)
        life.finish(vm)
        vm.close()


@pytest.mark.parametrize("size", [8, 10, 13, 24, 31, 32])
def test_sizes_of_packed_rings_that_the_guest_chooses(tmp_path, size):
    """Not a power of two: legal for packed rings (virtio 1.3 section 2.8.10.1)."""
    guest = GuestConfig(queue_size=size)
    with no_leaks():
        vm = make(tmp_path, ring="packed", guest=guest)
        life = Life(vm)
        assert {queue.size for queue in vm.device.virtio.queues if queue.ready} == {size}
        for _ in range(4):
            before, vm = vm, vm.migrate()
            before.close()
            assert {queue.size for queue in vm.device.virtio.queues if queue.ready} == {size}
            for _ in range(size):
                life.go_on(vm)
            life.check(vm)
        life.finish(vm)
        vm.close()


def test_memory_of_several_regions_with_holes(tmp_path):
    regions = [(0, 1 << 20), (4 << 20, 1 << 20), (1 << 32, 1 << 20)]
    with no_leaks():
        vm = make(tmp_path, memory=regions)
        life = Life(vm)
        before, vm = vm, vm.migrate()
        before.close()
        assert [(r.gpa, r.size_bytes) for r in vm.memory.regions] == regions
        life.check(vm)
        life.finish(vm)
        vm.close()


def test_an_interrupt_before_the_first_byte_ends_the_migration(tmp_path):
    """Nobody has closed anything yet: the destination must not wait for what never comes."""
    at = []

    def interrupted(channel, side):
        if side == "source":
            at.append(side)
            raise KeyboardInterrupt
        return channel

    with no_leaks():
        vm = Machine(tmp_path, memory="8M", seams=Seams(channel=interrupted))
        with pytest.raises(KeyboardInterrupt):
            vm.migrate()
        assert at == ["source"]
        assert vm.mount().listdir("/") == []
        vm.close()
