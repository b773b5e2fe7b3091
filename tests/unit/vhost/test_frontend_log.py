"""Whatever a back-end marks is harvested, once, whichever moment the front-end chooses for that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.leaks import Held
from tests.support.vhost_rig import Rig
from vmsim.errors import PeerError
from vmsim.host.services import HostServices
from vmsim.memory import DirtyLog
from vmsim.vhost.frontend_log import RETIRED_MAX, FrontendLog

SIZE = 64
PAGES = SIZE * 8


class Backend:
    """Marks pages in the log that it was told of; a thread of it may have looked up the log a while ago."""

    def __init__(self):
        self.logs = []
        self.refuse = False

    def announce(self, log):
        if self.refuse:
            raise PeerError("no")
        self.logs.append(log.view)

    def mark(self, page, late):
        log = self.logs[-1 - min(late, len(self.logs) - 1)]
        log[page >> 3] |= 1 << (page & 7)


def pages(bits):
    word = int.from_bytes(bits, "little")
    return [page for page in range(PAGES) if word >> page & 1]


steps = st.lists(st.one_of(
    st.none(), st.tuples(st.integers(0, PAGES - 1), st.sampled_from([0, 0, 0, 1, 2, RETIRED_MAX - 1])),
))  # fmt: skip


@given(steps)
def test_nothing_is_lost_between_two_harvests(steps):
    """None is a harvest; a mark may go to a log that has been replaced already."""
    backend = Backend()
    log = FrontendLog(HostServices(), backend.announce, SIZE, shares_process=False)
    expected = set()
    found = set()
    for step in [*steps, None]:
        if step is None:
            taken = pages(log.take())
            assert set(taken) == expected
            found |= expected
            expected = set()
            continue
        page, late = step
        view = backend.logs[-1 - min(late, len(backend.logs) - 1)]
        if not view[page >> 3] >> (page & 7) & 1:
            expected.add(page)
        backend.mark(page, late)
    log.close()


def test_former_logs_are_given_up_after_a_while():
    before = Held()
    backend = Backend()
    log = FrontendLog(HostServices(), backend.announce, SIZE, shares_process=False)
    for _ in range(50):
        assert not any(log.take())
    more = [number for number, _ in before.more() if number.isdigit()]
    assert len(more) <= 2 * (RETIRED_MAX + 1)
    backend.logs.clear()
    log.close()
    log.close()
    assert log.take() == b""
    assert before.more() == []


def test_a_refused_switch_changes_nothing():
    backend = Backend()
    log = FrontendLog(HostServices(), backend.announce, SIZE, shares_process=False)
    backend.mark(7, 0)
    backend.refuse = True
    before = Held()
    with pytest.raises(PeerError):
        log.take()
    assert before.more() == []
    backend.refuse = False
    backend.mark(9, 0)
    assert pages(log.take()) == [7, 9]
    log.close()


def test_a_device_switches_its_log_at_each_harvest():
    with Rig() as rig:
        rig.transport.shares_process = False
        rig.boot()
        dirty = DirtyLog(rig.memory)
        dirty.start()
        rig.device.start_log(dirty)
        rig.memory.dirty = None
        for slot in range(4):
            rig.driver.send(b"data", slot=slot)
            used = rig.driver.reap()
            assert used is not None
            assert dict(dirty.harvest()) == {0x1102000: 4096, 0x2100000 + 0x1000 * slot: 4096}
        assert rig.transport.names.count("SET_LOG_BASE") == 5
        assert dirty.harvest() == []
        rig.device.stop_log(dirty)
        dirty.stop()
