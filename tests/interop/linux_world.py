"""A Linux guest that works in its mount and checks what it gets while it moves between back-ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.interop.linux_guest import LinuxVm, build_initramfs
from tests.interop.qemu_rig import VIRTIOFSD, start_backend
from tests.support.waiting import until
from vmsim.host.processes import BackendProcess

WORK = r"""#!/bin/busybox sh
# Works in the directory $1 until /tmp/stop exists; what goes wrong is told in /tmp/bad.
cd "$1" || exit 1
exec 8>>log
sum=$(md5sum <big)
n=0
bad() { echo "$n: $*" >>/tmp/bad; }
while [ ! -e /tmp/stop ]; do
    while [ -e /tmp/rest ]; do : >/tmp/resting; sleep 0.1; done
    rm -f /tmp/resting
    n=$((n + 1))
    echo "record $n" >&8 || bad append
    echo "contents of $n" >new || bad create
    mv new "name $n" || bad rename
    read -r got <"name $n" && [ "$got" = "contents of $n" ] || bad "read: $got"
    mkdir "d$n" && : >"d$n/a" && ln "name $n" "d$n/b" && ln -s a "d$n/c" || bad "making a tree"
    set -- "d$n"/*
    [ "$*" = "d$n/a d$n/b d$n/c" ] || bad "readdir: $*"
    rm -r "d$n" "name $n" || bad remove
    if [ $((n % 8)) = 0 ]; then
        echo 1 >/proc/sys/vm/drop_caches
        [ "$(md5sum <big)" = "$sum" ] || bad "md5sum"
    fi
    echo $n >/tmp/count.new && mv /tmp/count.new /tmp/count
done
"""
BIG = bytes(range(256)) * 2048
"""Half a mebibyte, so that reading it takes several requests and pages."""


class LinuxWorld:
    """One share, back-ends and QEMUs on it, and a guest that moves between them; ``close`` ends all.

    ``vm`` and ``backend`` are where the guest is. ``device`` are properties of the device, ``options``
    those of the back-ends, everywhere alike; ``own`` are those that only ``vmsim serve`` has.
    """

    def __init__(
        self, peers: Any, folder: Path, kind: str, device: str = "", options: tuple[str, ...] = (),
        own: tuple[str, ...] = (),
    ) -> None:
        self.peers = peers
        self.options = options
        self.own = own
        self.share = folder / "share"
        self.share.mkdir()
        self.device = device
        self.initrd = folder / "initrd"
        self.initrd.write_bytes(build_initramfs(peers, {"work.sh": WORK}))
        self._made: list[Any] = []
        self.kind = kind
        try:
            self.vm, self.backend = self.start(kind)
            self.vm.boot()
            self.vm.run("mount -t virtiofs share /mnt")
        except BaseException:
            self.close()
            raise

    def start(
        self, kind: str, *, incoming: bool = False, share: Path | None = None, device: str | None = None
    ) -> tuple[LinuxVm, BackendProcess]:
        """A QEMU on a back-end of its own."""
        own = () if kind == VIRTIOFSD else self.own
        backend = start_backend(self.peers, kind, share or self.share, *self.options, *own)
        self._made.append(backend.stop)
        device = self.device if device is None else device
        vm = LinuxVm(self.peers, backend.socket, self.initrd, incoming=incoming, device=device)
        self._made.append(vm.close)
        # So that the source hears of a load that failed, and goes on by itself.
        capabilities = [{"capability": "return-path", "state": True}]
        vm.qemu.qmp("migrate-set-capabilities", capabilities=capabilities)
        return vm, backend

    def destination(self, kind: str, **changes: Any) -> tuple[LinuxVm, BackendProcess, str]:
        """One that waits for a guest, and where it listens."""
        vm, backend = self.start(kind, incoming=True, **changes)
        uri = f"unix:{vm.qemu.folder}/migration"
        vm.qemu.incoming(uri)
        return vm, backend, uri

    def hop(self, kind: str) -> dict[str, Any]:
        """Migrate live to a new QEMU on a new back-end; QEMU's numbers. The source ends.

        The guest's work rests while it leaves virtiofsd. That leaves a request in the ring whose kick it had
        not seen when the ring was stopped; QEMU drops the kick, and the guest waits forever. (It does so with
        virtiofsd at both ends too.)
        """
        rests = self.kind == VIRTIOFSD
        if rests:
            self.vm.run(": >/tmp/rest; until [ -e /tmp/resting ]; do sleep 0.1; done")
        found = self.plain_hop(kind)
        if rests:
            self.vm.run("rm /tmp/rest")
        return found

    def plain_hop(self, kind: str) -> dict[str, Any]:
        """The same for a guest that does nothing at the moment."""
        vm, backend, uri = self.destination(kind)
        found = self.vm.qemu.migrate(uri)
        assert found["status"] == "completed", (found, self.vm.qemu.log, self.backend.said())
        arrived = vm.qemu.arrived()
        assert arrived == "running", (arrived, vm.qemu.log, backend.said())
        self.vm.close()
        self.backend.stop()
        self.vm, self.backend, self.kind = vm, backend, kind
        return found

    # The workload

    def begin_work(self) -> None:
        """Have the guest begin to work in the background."""
        place = self.share / "work"
        place.mkdir()
        (place / "big").write_bytes(BIG)
        self.vm.run("rm -f /tmp/stop /tmp/bad /tmp/count; (exec setsid /work.sh /mnt/work) &")
        self.work_on(1)

    def count(self) -> int:
        """How many rounds of work are done."""
        return int(self.vm.run("cat /tmp/count 2>/dev/null || echo 0"))

    def work_on(self, rounds: int = 3) -> int:
        """Wait for some more of them; how many there are then."""
        end = self.count() + rounds
        return int(until(lambda: found if (found := self.count()) >= end else 0, "the guest's work"))

    def end_work(self) -> int:
        """Stop it and look at what it did: how many rounds. AssertionError for anything that is wrong."""
        self.work_on()
        self.vm.run(": >/tmp/stop; wait")
        until(lambda: not self.vm.run("pidof work.sh || :"), "the end of the guest's work")
        assert self.vm.run("cat /tmp/bad 2>/dev/null || :") == ""
        rounds = self.count()
        log = (self.share / "work" / "log").read_text().splitlines()
        assert log == [f"record {number}" for number in range(1, rounds + 1)]
        assert sorted(entry.name for entry in (self.share / "work").iterdir()) == ["big", "log"]
        return rounds

    def close(self) -> None:
        """End everything; may be called twice."""
        for end in reversed(self._made):
            end()
