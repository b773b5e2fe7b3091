"""The history of a voyage, with wrappers at every seam: run as a program it prints one line per event.

    python -m tests.simulation.history SEED SHARE [FAULT]
"""

from __future__ import annotations

import os
import sys

from tests.simulation.voyage import Voyage
from vmsim.machine import Seams
from vmsim.trace import Tracer, render
from vmsim.wrappers.deterministic_host import DeterministicHost
from vmsim.wrappers.faults import Fault
from vmsim.wrappers.traced import TracedChannel, TracedDevice, TracedHostFs, TracedTransport


def record(seed, share, fault=None):
    """(voyage, all entries) of a run of ``seed`` in the empty directory ``share``."""
    tracer = Tracer()
    history = tracer.record("*")

    def seams(where):
        source = tracer.source(where)
        return Seams(
            transport=lambda inner: TracedTransport(inner, source),
            channel=lambda inner, side: TracedChannel(inner, source),
            host_fs=lambda inner: TracedHostFs(host.wrap(inner), source),
            backend=lambda inner: TracedDevice(inner, source),
            trace=source,
        )

    voyage = Voyage(seed, share, seams=seams, trace=tracer.source("sim"), fault=fault)
    host = DeterministicHost(voyage.schedule.now_ns)
    tracer.now_ns = voyage.schedule.now_ns
    voyage.run()
    tracer.check()
    return voyage, history


if __name__ == "__main__":
    os.umask(0o022)
    number, where, *wanted = sys.argv[1:]
    chosen = Fault("channel *", "*", int(wanted[0]), "fail") if wanted else None
    for entry in record(int(number), where, chosen)[1]:
        print(render(entry))
