"""Hundreds of seeds of random file operations, with migrations in between, against an oracle.

    tools/test tests/simulation/test_voyages.py                      some of the usual seeds; --whole: all
    VMSIM_SEEDS=17 tools/test tests/simulation/test_voyages.py       one of them
    VMSIM_SEEDS=0-5000 tools/test tests/simulation/test_voyages.py   many more
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.device import VirtioFsDevice
from devices.virtio_fs.passthrough.locks import LockOps
from devices.virtio_fs.state.restore import Load
from tests.simulation.cargo import WAITS
from tests.simulation.voyage import Voyage
from tests.support import sampling
from tests.support.leaks import no_leaks
from tests.support.sampling import sample
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.memory import DirtyLog

USUAL = range(240)
SOME = 36
"""Of the usual seeds in a plain run."""
DEFECTIVE = range(20)
"""Seeds of voyages that have a defect to find."""


def seeds():
    """The seeds of this run; VMSIM_SEEDS is a number, or FIRST-LAST."""
    wanted = os.environ.get("VMSIM_SEEDS")
    if wanted is None:
        return sample(USUAL, SOME, "voyages")
    first, _, last = wanted.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.sim
@pytest.mark.parametrize("seed", seeds())
def test_voyage(seed, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    Voyage(seed, share).run()


def loses_pages(monkeypatch):
    """The last rounds of memory."""
    monkeypatch.setattr(DirtyLog, "harvest", lambda log: [])


def loses_locks(monkeypatch):
    monkeypatch.setattr(LockOps, "restore_lock", lambda fs, lock, lender: None)


def loses_flocks(monkeypatch):
    monkeypatch.setattr(LockOps, "restore_flock", lambda fs, fh, kind: None)


def loses_waiting(monkeypatch):
    """The requests that were parked: nobody takes them up again."""
    monkeypatch.setattr(VirtioFsBackend, "keep_parked", lambda backend, ring, state: None)


def loses_requests(monkeypatch):
    """Nobody looks at the rings after a migration."""
    monkeypatch.setattr(VirtioFsDevice, "kick", lambda device: None)


def loses_offsets(monkeypatch):
    restore = GuestKernel.restore

    def forgetful(kernel, saved):
        restore(kernel, saved)
        for file in kernel.state.files.values():
            file.offset = 0

    monkeypatch.setattr(GuestKernel, "restore", forgetful)


def loses_access(monkeypatch):
    """Files that are open for appending or writing are open for reading afterwards."""
    restore = Load._handle

    def reading(load, record, flags, asked):
        restore(load, record, flags & ~os.O_ACCMODE, asked)

    monkeypatch.setattr(Load, "_handle", reading)


def voyages(folder, seeds):
    """Runs these seeds: (voyage, what it raised)."""
    for seed in seeds:
        share = folder / str(seed)
        share.mkdir()
        voyage, raised = Voyage(seed, share), None
        try:
            voyage.run()
        except Exception as error:
            raised = error
        yield voyage, raised


DEFECTS = (
    loses_pages, loses_locks, loses_flocks, loses_waiting, loses_requests, loses_offsets, loses_access,
)  # fmt: skip


@pytest.mark.sim
@pytest.mark.parametrize("defect", DEFECTS)
def test_voyages_find_what_is_lost(defect, tmp_path, monkeypatch):
    """At least nine of ten, and they say how to see it again."""
    defect(monkeypatch)
    missed = []
    with no_leaks():
        for voyage, raised in voyages(tmp_path, sample(DEFECTIVE, 10, f"voyages, lost: {defect.__name__}")):
            if raised is None:
                missed.append(str(voyage.plan))
            else:
                assert f"VMSIM_SEEDS={voyage.seed} tools/test" in "".join(raised.__notes__)
    assert len(missed) <= len(DEFECTIVE) // 10, missed


@pytest.mark.sim
def test_what_voyages_carry(tmp_path):
    """Nearly each carries everything, at least once, over a migration that succeeds."""
    count = 40 if sampling.Run.whole else 20  # of the same ones in each run: this counts
    carried = Counter()
    for voyage, raised in voyages(tmp_path, range(count)):
        assert raised is None
        carried.update(what for what, times in voyage.cargo.carried.items() if times)
    print(dict(carried))
    for what in ("held lock", "held flock", "parked", "unseen"):
        assert carried[what] >= 0.9 * count, carried
    waiting = {what: times for what, times in carried.items() if what.startswith("waiting")}
    assert waiting.keys() == {f"waiting {what}" for what in WAITS}
    assert min(waiting.values()) >= 0.2 * count, carried
