"""A real Linux in a real QEMU on our back-end: it works in its mount, and goes on when its machine moves.

Each story boots once (many seconds of CPU under TCG) and moves the guest several times; a plain run takes
three of them. The guest checks itself what it reads; afterwards we look at what is in the share.
"""

from __future__ import annotations

import hashlib
import shutil

import pytest

from tests.interop.linux_world import BIG, LinuxWorld
from tests.interop.qemu_rig import VIRTIOFSD, VMSIM
from tests.support.sampling import sample
from tests.support.waiting import until

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]
TOLERANT = "--migration-on-error=guest-error"
"""virtiofsd cannot save what was removed while the guest's kernel has not forgotten it yet: such an inode is
lost, and with ``abort`` the destination refuses all because of it. The guest never uses it again."""
SLOW = {"max-bandwidth": 4 << 20}
FAST = {"max-bandwidth": 1 << 32}


@pytest.fixture
def world(peers, tmp_path):
    """Makes a world with a guest that has mounted the share; all of it ends with the test."""
    made = []

    def make(kind: str, device: str = "", *options: str, own: tuple[str, ...] = ()) -> LinuxWorld:
        made.append(LinuxWorld(peers, tmp_path, kind, device, options, own))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tell(what: str, found: dict) -> None:
    print(f"{what}: {found['total-time']} ms, {found['downtime']} ms down")


def open_files(world: LinuxWorld) -> None:
    """Things that the guest's shell holds from now on."""
    (world.share / "kept").write_text("line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n")
    world.vm.run("cd /mnt; mkdir here; exec 5<>both 6</mnt/kept 7>>log; cd here; read -r line <&6")
    world.vm.run("echo begun >&5; echo begun >&7")


def check_open_files(world: LinuxWorld, hop: int) -> None:
    """Positions, append mode, the working directory: all as before the machine moved ``hop`` times."""
    assert world.vm.run("read -r line <&6; echo $line") == f"line {hop + 1}"
    world.vm.run(f"echo {hop} >&5; echo {hop} >&7; mv /mnt/log /mnt/log.new; mv /mnt/log.new /mnt/log")
    told = "".join(f"{text}\n" for text in ("begun", *range(1, hop + 1)))
    for name in ("both", "log"):
        assert (world.share / name).read_text() == told
    world.vm.run(f"echo {hop} >made.{hop}")
    assert (world.share / "here" / f"made.{hop}").read_text() == f"{hop}\n"
    assert world.vm.run("echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/work/big").split()[0] == (
        hashlib.md5(BIG).hexdigest()
    )


def a_guest_that_works_moves_between_vmsim_and_virtiofsd(world, tmp_path):
    w = world(VMSIM, "", TOLERANT)
    w.begin_work()
    open_files(w)
    for hop, (there, here) in enumerate(
        [(VMSIM, VMSIM), (VMSIM, VIRTIOFSD), (VIRTIOFSD, VMSIM), (VMSIM, VMSIM)], 1
    ):
        tell(f"{there} -> {here}", w.hop(here))
        w.work_on()
        check_open_files(w, hop)
    print(f"{w.end_work()} rounds of work, all right")


def a_guest_with_packed_rings_moves_twice_with_files_that_have_no_name(world, tmp_path):
    w = world(VMSIM, "packed=on")
    features = w.vm.run("cat /sys/bus/virtio/devices/virtio0/features").strip()
    assert features[34] == "1", "the guest's driver took VIRTIO_F_RING_PACKED"
    w.begin_work()
    open_files(w)
    w.vm.run("echo precious >/mnt/gone; exec 4<>/mnt/gone; rm /mnt/gone")
    for hop in (1, 2):
        tell("vmsim -> vmsim, packed", w.hop(VMSIM))
        w.work_on()
        check_open_files(w, hop)
    assert w.vm.run("cat <&4") == "precious"
    assert not (w.share / "gone").exists()
    print(f"{w.end_work()} rounds of work, all right")


def with_plain_command_lines_a_guest_moves_to_virtiofsd_and_back(world, tmp_path):
    """Nothing is said to QEMU, virtiofsd or ``vmsim serve`` but where the socket and the directory are."""
    w = world(VMSIM)
    (w.share / "work").mkdir()
    (w.share / "work" / "big").write_bytes(BIG)
    open_files(w)
    for hop, kind in enumerate((VIRTIOFSD, VMSIM, VIRTIOFSD), 1):
        w.vm.run("sync")
        tell(f"{w.kind} -> {kind}", w.plain_hop(kind))
        check_open_files(w, hop)


def whatever_the_destination_does_wrong_the_source_goes_on(world, tmp_path):
    w = world(VMSIM, own=("--ring-reset",))
    w.begin_work()
    open_files(w)
    qemu = w.vm.qemu

    def fails(what: str, kind: str, said: str, kill: bool = False, **changes) -> None:
        vm, backend, uri = w.destination(kind, **changes)
        qemu.qmp("migrate-set-parameters", **(SLOW if kill else FAST))
        qemu.start_migration(uri)
        if kill:
            until(lambda: qemu.qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0, "pages")
            backend.kill()
            qemu.qmp("migrate-set-parameters", **FAST)
        found = qemu.migration_ended()
        assert (found["status"], vm.qemu.arrived(), vm.qemu.wait()) == ("failed", "gone", 1)
        assert said in vm.qemu.log, vm.qemu.log
        until(lambda: qemu.status == "running", "the source to go on")
        vm.close()
        backend.stop()
        w.work_on()
        print(f"{what}: {said!r}; the source goes on")

    fails("features that it lacks", VIRTIOFSD, "Allowed features: 0x")
    other = tmp_path / "other"
    shutil.copytree(w.share, other, ignore=shutil.ignore_patterns("kept"))
    fails("an open file that is missing there", VMSIM, "Failed to load vhost-user-fs", share=other)
    fails("killed", VMSIM, "Failed to load vhost-user-fs", kill=True)
    tell("then vmsim -> vmsim", w.hop(VMSIM))
    w.work_on()
    check_open_files(w, 1)
    print(f"{w.end_work()} rounds of work, all right")


def a_guest_survives_its_back_end_that_was_killed_but_its_mount_does_not(world, tmp_path):
    w = world(VMSIM)
    w.begin_work()
    vm, _, uri = w.destination(VMSIM)
    qemu = w.vm.qemu
    qemu.qmp("migrate-set-parameters", **SLOW)
    qemu.start_migration(uri)
    until(lambda: qemu.qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0, "pages")
    w.backend.kill()
    qemu.qmp("migrate-set-parameters", **FAST)
    found = qemu.migration_ended()
    print(f"migration: {found['status']}, {found.get('error-desc', 'no word why')}")
    assert found["status"] == "failed"
    assert vm.qemu.arrived() == "gone"
    until(lambda: qemu.status == "running", "the source to go on")
    rounds = w.count()
    assert w.vm.run("sleep 1; grep virtiofs /proc/mounts").startswith("share /mnt virtiofs")
    assert w.count() == rounds, "nobody serves its mount any more"
    print(f"the guest lives; its work in the mount stands still after {rounds} rounds")


STORIES = [
    a_guest_that_works_moves_between_vmsim_and_virtiofsd,
    a_guest_with_packed_rings_moves_twice_with_files_that_have_no_name,
    with_plain_command_lines_a_guest_moves_to_virtiofsd_and_back,
    whatever_the_destination_does_wrong_the_source_goes_on,
    a_guest_survives_its_back_end_that_was_killed_but_its_mount_does_not,
]


@pytest.mark.parametrize(
    "story", sample(STORIES, 3, "stories of Linux in QEMU"), ids=lambda story: story.__name__
)
def test_it_goes_on(story, world, tmp_path):
    story(world, tmp_path)
