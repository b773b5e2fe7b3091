"""Back-ends that die without having said or done anything: between any two lines of their code."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.lines import counted_lines
from tests.support.vhost_rig import BASIC, EchoDevice, Rig
from vmsim.vhost import backend_ring, inflight, tracking
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.virtio import device_ring, packed_device, split_device

OPTIONS = BackendOptions(protocol_features=IMPLEMENTED)
FILES = {
    module.__file__
    for module in (backend_ring, inflight, tracking, device_ring, packed_device, split_device)
}


class Dead(BaseException):
    """Where a back-end dies."""


def lines_of(act: Callable[[], object]) -> int:
    """Do ``act``; how many lines in FILES it executes, before each of which one may die."""
    with counted_lines(FILES) as lines:
        act()
    return lines.count


def dies(act: Callable[[], object], after: int) -> bool:
    """Do ``act``, and die before the line number ``after`` (from 0) that it executes in FILES; whether."""
    try:
        with counted_lines(FILES, Dead, before=after + 1):
            act()
    except Dead as dead:
        dead.__traceback__ = None  # its frames hold views of guest memory
        return True
    return False


def boot(features: int, size: int = 128, make: Callable[..., Rig] = Rig) -> Rig:
    """A device whose back-end records its requests in flight."""
    rig = make(echo=EchoDevice(BASIC | features), backend=OPTIONS)
    rig.driver.size = size
    return rig.boot(features)


def die(rig: Rig) -> None:
    """The back-end is gone, another process has taken its place; the device is not connected yet."""
    bury(rig)
    rig.device.detach()
    served = rig.echo.served
    rig.echo = EchoDevice(rig.echo.virtio_features)
    rig.echo.served = served
    rig.backend = VhostBackend(rig.echo, rig.host, rig.backend_schedule, rig.dialect, OPTIONS)


def bury(rig: Rig) -> None:
    """What the system does with a process that was killed: its memory and connection are gone."""
    former = rig.backend
    rig.cut()
    rig.echo.waiting.clear()
    for ring in former.rings:
        ring.ring = ring.live = ring._tracking = ring._inflight = None
        ring._outstanding.clear()
    former.memory.close()
    if former._inflight_view is not None:
        former._io.unmap(former._inflight_view)
    if former._log_view is not None:
        former._io.unmap(former._log_view)


def reap_all(rig: Rig, queue: int = 1) -> list[tuple[int, int]]:
    """All used buffers."""
    answers = []
    while (used := rig.driver.reap(queue)) is not None:
        answers.append(used)
    return answers
