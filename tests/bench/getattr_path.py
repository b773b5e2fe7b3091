"""One GETATTR through all layers against one fstat of the host, and where the time goes.

The ladder is climbed from the bottom: each rung does what the one below does and adds a layer, so that the
difference of two rungs is the cost of that layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.measure import Figure, Plan, interleave, micros, quotient
from vmsim import Machine
from vmsim.fuse import opcodes as op
from vmsim.fuse.client import encode
from vmsim.fuse.filesystem import Context

AIM = 12.0
REPLY_BYTES = 120
UNIQUE = 2


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """GETATTR on both kinds of ring."""
    (folder / "file").write_bytes(b"x" * 4096)
    for ring in ("split", "packed"):
        yield measure(plan, folder, ring)


def measure(plan: Plan, folder: Path, ring: str) -> Figure:
    """The ladder of one kind of ring."""
    host_fd = os.open(folder / "file", os.O_RDONLY)
    try:
        with Machine(share=folder, ring=ring, memory="64M", options={"cache": "never"}) as vm:
            fs = vm.mount()
            fd = fs.open("/file", os.O_RDONLY)
            before = vm.kernel.state.next_unique
            fs.fstat(fd)
            if vm.kernel.state.next_unique == before:
                raise RuntimeError("fstat was answered from a cache of the guest")
            rungs = {"host": lambda: os.fstat(host_fd), **ladder(vm, fd), "all": lambda: fs.fstat(fd)}
            times = interleave(rungs, plan.pick(60, 3), plan.pick(2000, 50))
    finally:
        os.close(host_fd)
    us = {name: micros(times, name) for name in rungs}
    stages = {
        "host fstat": us["host"],
        "passthrough": us["passthrough"] - us["host"],
        "session": us["session"] - us["passthrough"],
        "rings": us["rings"],
        "back-end loop": us["kick"] - us["session"] - us["rings"],
        "doorbell": us["doorbell"] - us["kick"],
        "guest": us["all"] - us["doorbell"],
        "all": us["all"],
    }
    largest = max(list(stages)[:-1], key=lambda name: stages[name])
    return Figure(
        f"getattr.{ring}", quotient(times, "all", "host"), "x os.fstat", AIM,
        detail={f"{name} us": amount for name, amount in stages.items()},
        note=f"most of it: {largest} ({100 * stages[largest] / stages['all']:.0f} %)",
    )  # fmt: skip


def ladder(vm: Machine, fd: int) -> dict[str, Callable[[], object]]:
    """The rungs between the host's fstat and the guest's, over the live parts of ``vm``."""
    served: Any = vm.backend.served
    kernel = vm.kernel
    file = kernel.state.files[kernel.state.processes[1].fds[fd]]
    queue = kernel.queues[1]
    driver_ring: Any = queue.ring
    backend_ring = vm.backend.vhost.rings[1]
    message = encode(op.GETATTR, UNIQUE, file.nodeid, 0, 0, 1, (1, 0, file.fh))
    base = queue.state.slots_gpa
    vm.memory.write(base, message)
    readable, writable = ((base, len(message)),), ((base + 1024, REPLY_BYTES),)
    views = [vm.memory.view(*readable[0])], [vm.memory.view(*writable[0])]
    ctx = Context(len(message), op.GETATTR, UNIQUE, file.nodeid, 0, 0, 1, 0, 0)
    getattr_, handle = served.fs.getattr, served.session.handle

    def passthrough() -> None:
        getattr_(ctx, file.nodeid, file.fh)

    def session() -> None:
        if handle(*views, print) != REPLY_BYTES:
            raise RuntimeError("the session did not answer GETATTR")

    def rings() -> None:
        driver_ring.add(readable, writable)
        driver_ring.publish()
        driver_ring.needs_kick()
        ring = backend_ring.live
        ring.push(ring.pop(), REPLY_BYTES)
        ring.arm_kicks()
        ring.needs_call()
        driver_ring.reap()

    def kick() -> None:
        driver_ring.add(readable, writable)
        driver_ring.publish()
        driver_ring.needs_kick()
        backend_ring.kicked()
        driver_ring.reap()

    def doorbell() -> None:
        driver_ring.add(readable, writable)
        driver_ring.publish()
        driver_ring.needs_kick()
        kernel.driver.notify(driver_ring)
        driver_ring.reap()

    return {
        "passthrough": passthrough, "session": session, "rings": rings, "kick": kick, "doorbell": doorbell
    }
