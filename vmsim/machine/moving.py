"""How a machine leaves: through a channel, or into another machine of this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from vmsim.errors import MigrationError, VmsimError
from vmsim.machine.arrival import Arrival
from vmsim.machine.assembled import AssembledMachine
from vmsim.machine.progress import MigrationTrace
from vmsim.machine.roles import Source
from vmsim.machine.states import DOUBT, FINISHED, IN_DOUBT, INCOMING
from vmsim.migration import phases
from vmsim.migration.channel import Channel, MemoryChannel
from vmsim.migration.report import MigrationParameters, Progress, ProgressCallback
from vmsim.migration.source import OutgoingMigration


def move(
    machine: AssembledMachine, arrival: Arrival, parameters: MigrationParameters,
    progress: ProgressCallback | None,
) -> AssembledMachine:  # fmt: skip
    """Migrate into the machine that ``arrival`` makes; errors are those of ``Machine.migrate``."""
    there, here = MemoryChannel.pair(machine.schedule)
    arrival.clock = parameters.clock
    task = machine.schedule.spawn("incoming migration", lambda: arrival.receive(here))

    def arrived() -> AssembledMachine | None:
        machine.schedule.wait(lambda: task.done, "the end of the incoming migration")
        return arrival.machine if task.error is None else None

    def runs() -> bool:
        return arrived() is not None

    def make_an_end() -> None:
        """Of the destination, so that this machine can go on."""
        arrived()
        if arrival.machine is not None:
            arrival.machine.close()

    told = MigrationTrace(machine.seams.trace, progress)
    try:
        outgoing = leave(machine, there, told, parameters, make_an_end, runs)
        other = arrived()
        if other is None:
            with suppress(VmsimError):
                task.result()  # an interrupt is not a failure of the destination
            raise MigrationError(
                "the destination failed after it had taken over", step="go", side="destination"
            )
        hand_over(machine, other)
    except BaseException:
        if not machine.kernel.birthplace.ours:
            raise  # a forked child that unwinds: the destination is not its own to wait for
        if machine.state == FINISHED and (other := arrived()) is not None:  # an interrupt after the commit
            hand_over(machine, other)
        elif machine.state not in (FINISHED, IN_DOUBT):
            there.close()  # interrupted before the migration could take care of it, it has a reader who waits
            make_an_end()
            with suppress(VmsimError):
                task.result()  # a bug there is told, not what it led to here
        raise
    outgoing.started(arrival.load_ns)
    with suppress(VmsimError, OSError):  # a connection or back-end that is gone: nothing here is of use
        machine.let_go()
    machine.release_memory()
    other.migration_stats = outgoing.stats
    told.committed(outgoing.stats)
    return other


def leave(
    machine: AssembledMachine, channel: Channel, told: MigrationTrace, parameters: MigrationParameters,
    destination_released: Callable[[], object] = lambda: None, runs: Callable[[], bool] | None = None,
) -> OutgoingMigration:  # fmt: skip
    """Send ``machine`` through ``channel``; the migration, committed.

    ``destination_released`` returns once the destination of a failed migration has let go of everything;
    ``runs`` says whether a destination in this program runs: nobody knows of another one.
    """

    def report(progress: Progress) -> None:
        told.progress(progress)
        machine.kernel.birthplace.check()  # whoever was told may have forked

    channel = machine.seams.channel(channel, "source")
    clock = parameters.clock or machine.schedule.now_ns
    source = Source(machine, clock, destination_released, beside=runs is not None)
    outgoing = OutgoingMigration(
        source, channel, machine.schedule, parameters, report, runs or (lambda: None),
        both_here=runs is not None,
    )  # fmt: skip
    told.stats = outgoing.stats
    try:
        try:
            machine.outgoing = outgoing
            outgoing.run()
        except VmsimError as error:
            told.failed(error)
            raise
        finally:
            _state_end(machine, outgoing)
    except BaseException:
        _state_end(machine, outgoing)  # an interrupt may have come just before that
        raise
    return outgoing


def _state_end(machine: AssembledMachine, outgoing: OutgoingMigration) -> None:
    """Whatever came up, an interrupt too: what has not been stated is in doubt. May be done twice."""
    if outgoing.phase != phases.DOUBT:
        machine.outgoing = None
    elif machine.state != IN_DOUBT:
        machine.become(DOUBT)


def hand_over(machine: AssembledMachine, other: AssembledMachine) -> None:
    """Committed: programs go on with ``other``. Done again after an interrupt in it, it is done.

    StateError in a forked child: it is not the child that they go on in.
    """
    machine.kernel.birthplace.check()
    machine.moved_to = other
    if other.state != INCOMING:
        return
    other.kernel.adopt(machine.kernel)
    if other.backend is machine.backend and machine.owns_backend:
        other.owns_backend = True
        machine.owns_backend = False
    other.arrived_requests = len(other.kernel.requests)
    other.start_running()
