"""A notebook: an event loop runs in the main thread; cells and threads use a machine, and are interrupted."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading

import pytest

from vmsim.errors import VmsimError
from vmsim.machine import Machine

TRANSPORTS = pytest.mark.parametrize("transport", [None, "vhost-user"])


def write(vm, text):
    with vm.mount().open_file("/log", "a") as file:
        file.write(text)


@TRANSPORTS
def test_cells_of_an_event_loop(tmp_path, transport):
    """Machines are made, used, moved and closed by coroutines; the loop goes on before and after."""
    ticks = []

    async def tick():
        while True:
            ticks.append(None)
            await asyncio.sleep(0.001)

    async def cells():
        clock = asyncio.create_task(tick())
        await asyncio.sleep(0)
        vm = Machine(tmp_path, memory="8M", transport=transport)
        write(vm, "a")
        await asyncio.sleep(0.002)
        vm = await asyncio.to_thread(vm.migrate)
        write(vm, "b")
        await asyncio.to_thread(write, vm, "c")
        vm = vm.migrate()
        write(vm, "d")
        await asyncio.to_thread(vm.close)
        clock.cancel()
        return asyncio.get_running_loop()

    loop = asyncio.run(cells())
    assert loop.is_closed()
    assert (tmp_path / "log").read_text() == "abcd"
    assert len(ticks) > 2


@TRANSPORTS
def test_one_machine_from_one_thread_after_the_other(tmp_path, transport):
    vm = Machine(tmp_path, memory="8M", transport=transport)
    machines, failures = [vm], []

    def cell(number):
        try:
            write(machines[-1], str(number))
            machines.append(machines[-1].migrate())
        except BaseException as error:
            failures.append(error)

    for number in range(3):
        thread = threading.Thread(target=cell, args=(number,))
        thread.start()
        thread.join()
    assert failures == []
    write(machines[-1], "3")
    machines[-1].close()
    assert (tmp_path / "log").read_text() == "0123"


class Stop(Exception):
    """What the handler of SIGINT raises, as KeyboardInterrupt in a notebook."""


MOMENTS = [(None, calls) for calls in (10, 100, 300, 1000, 3000, 10_000)]
MOMENTS += [("vhost-user", calls) for calls in (100, 1000, 10_000)]


@pytest.fixture
def lost():
    """What an interrupt has left to the garbage collector comes to light here, and not in a later test."""
    yield
    gc.collect()


# Between the making of a socket and its owner's care an interrupt leaves it to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("lost")
@pytest.mark.parametrize(("transport", "calls"), MOMENTS)
def test_an_interrupted_cell(tmp_path, transport, calls):
    """Wherever it is interrupted, the machine can be used again, or says clearly that it cannot, and closed.

    The interrupt comes after so many calls of functions, not after a time.
    """
    vm = Machine(tmp_path, memory="8M", transport=transport)
    write(vm, "a")
    left = calls

    def count(frame, event, argument):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt(number, frame):
        raise Stop

    before = signal.signal(signal.SIGINT, interrupt)
    there = None
    try:
        sys.setprofile(count)
        try:
            there = vm.migrate()
        finally:
            sys.setprofile(None)
    except (Stop, VmsimError):
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    use = there or vm
    try:
        write(use, "b")
        use = use.migrate()
        write(use, "c")
        expected = "abc"
    except VmsimError:
        expected = "a"
    use.close()
    vm.close()
    assert (tmp_path / "log").read_text() == expected
