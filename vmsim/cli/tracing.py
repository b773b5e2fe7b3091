"""``--trace``: what crosses the seams, printed while it happens."""

from __future__ import annotations

import sys

from vmsim.errors import UsageError
from vmsim.machine import Seams
from vmsim.schedule import Schedule
from vmsim.trace import Tracer, render
from vmsim.trace.events import KINDS
from vmsim.wrappers.traced import TracedChannel, TracedDevice, TracedHostFs, TracedTransport


def tracer_for(patterns: str, schedule: Schedule) -> Tracer:
    """A tracer that prints matching events on standard error; UsageError if nothing can match."""
    tracer = Tracer(schedule.now_ns)
    subscription = tracer.subscribe(patterns, lambda entry: print(render(entry), file=sys.stderr))
    if not any(subscription.matches(kind) for kind in KINDS):
        raise UsageError(f"no event matches {patterns!r}", hint=f"events are {', '.join(sorted(KINDS))}")
    return tracer


def traced_seams(tracer: Tracer, where: str) -> Seams:
    """Wrappers that show everything of the machine ``where``."""
    source = tracer.source(where)
    return Seams(
        transport=lambda inner: TracedTransport(inner, source),
        channel=lambda inner, side: TracedChannel(inner, source),
        host_fs=lambda inner: TracedHostFs(inner, source),
        backend=lambda inner: TracedDevice(inner, source),
        trace=source,
    )
