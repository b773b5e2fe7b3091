"""The time in which nobody runs, part by part: expected before the guest stops, measured afterwards.

A limit that is to be kept has to cover all of it. The clock is the schedule's, or the one that the
migration's parameters name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, TypeVar

from vmsim.migration.byteio import ByteSink, ByteSource

T = TypeVar("T")

PARTS: Final = {
    "rings_ns": "stopping guest and rings",
    "memory_ns": "the last memory",
    "guest_ns": "saving the guest",
    "device_ns": "saving the device and its back-end",
    "transfer_ns": "sending their state",
    "load_ns": "loading at the destination",
    "start_ns": "starting there",
}
"""The parts of :class:`Downtime`, in the order in which they come, in words."""


@dataclass(slots=True)
class Downtime:
    """How long each part takes, in nanoseconds.

    ``transfer_ns`` is what the other parts do not explain: waiting for the channel. ``load_ns`` is what the
    destination needs after the last byte; all of its work, if it is in this process.
    """

    rings_ns: int = 0
    memory_ns: int = 0
    guest_ns: int = 0
    device_ns: int = 0
    transfer_ns: int = 0
    load_ns: int = 0
    start_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Each part by its name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def longest(self) -> str:
        """What takes most of it, in words."""
        parts = self.parts()
        return PARTS[max(parts, key=lambda name: parts[name])]


class Forecast(NamedTuple):
    """What a machine expects of its sections while it still runs: times, and bytes that have to be sent.

    ``because`` says what the numbers hang on, such as the number of inodes.
    """

    guest_ns: int = 0
    device_ns: int = 0
    load_ns: int = 0
    start_ns: int = 0
    state_bytes: int = 0
    because: str = ""


Clock = Callable[[], int]
"""Nanoseconds that never go backwards."""


class WaitingSink:
    """A channel to write to that knows how long it kept the writer waiting."""

    __slots__ = ("_clock", "_sink", "waited_ns")

    def __init__(self, sink: ByteSink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock
        self.waited_ns = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, and note how long that took."""
        began = self._clock()
        self._sink.write(data)
        self.waited_ns += self._clock() - began


class WaitingSource:
    """A channel to read from that knows how long it kept the reader waiting."""

    __slots__ = ("_clock", "_source", "waited_ns")

    def __init__(self, source: ByteSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self.waited_ns = 0

    def read_some(self, limit: int) -> bytes | memoryview:
        """Read, and note how long that took."""
        began = self._clock()
        try:
            return self._source.read_some(limit)
        finally:
            self.waited_ns += self._clock() - began


class Stopwatch:
    """Measures the parts of one downtime as they come; what the channel waits for is nobody's part."""

    def __init__(self, clock: Clock, sink: WaitingSink) -> None:
        self._clock = clock
        self._sink = sink
        self.parts = Downtime()
        self.began_ns = 0

    def begin(self) -> None:
        """The guest stops now."""
        self.began_ns = self._clock()
        self.parts = Downtime()

    def do(self, part: str, work: Callable[[], T]) -> T:
        """Carry ``work`` out; what it took counts as ``part``."""
        began, waited = self._clock(), self._sink.waited_ns
        try:
            return work()
        finally:
            took = self._clock() - began - (self._sink.waited_ns - waited)
            setattr(self.parts, part, getattr(self.parts, part) + took)

    def end(self) -> None:
        """Committed: what no part explains was waiting for the channel."""
        self.parts.transfer_ns += self._clock() - self.began_ns - self.parts.total_ns

    def started(self, load_ns: int) -> None:
        """The guest runs again, and the destination is known to have worked for ``load_ns`` of the time."""
        parts = self.parts
        parts.start_ns += self._clock() - self.began_ns - parts.total_ns
        waited_ns = parts.load_ns + parts.transfer_ns
        parts.load_ns = min(load_ns, waited_ns)
        parts.transfer_ns = waited_ns - parts.load_ns


def expected(forecast: Forecast, memory_bytes: int, bytes_per_ns: float) -> Downtime:
    """The downtime if the guest stopped now, with ``memory_bytes`` left to send (bandwidth inf: at once)."""
    return Downtime(
        memory_ns=int(memory_bytes / bytes_per_ns), guest_ns=forecast.guest_ns, device_ns=forecast.device_ns,
        transfer_ns=int(forecast.state_bytes / bytes_per_ns), load_ns=forecast.load_ns,
        start_ns=forecast.start_ns,
    )  # fmt: skip


def overrun(downtime: Downtime, limit_ns: int, because: str) -> str:
    """By how much the limit cannot be kept, and because of what; empty if it can."""
    total = downtime.total_ns
    if total <= limit_ns:
        return ""
    longest = downtime.longest
    part = max(downtime.parts().values())
    why = f" ({because})" if because else ""
    return (
        f"the downtime limit of {milliseconds(limit_ns)} cannot be kept: {milliseconds(total)} are expected, "
        f"{milliseconds(total - limit_ns)} too many; {milliseconds(part)} of them for {longest}{why}"
    )


def milliseconds(duration_ns: int) -> str:
    """``12 ms``, ``0.25 ms``."""
    return f"{duration_ns / 1e6:.3g} ms" if duration_ns < 10_000_000 else f"{round(duration_ns / 1e6)} ms"
