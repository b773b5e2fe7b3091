"""Commands about the machine itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

from vmsim.cli.common import human_bytes, human_ns, printable
from vmsim.cli.shell.command import COMMANDS, Session, ShellError, ShellExit, arguments, command, number
from vmsim.machine import Machine
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.virtio.device import QueueConfig


@command("migrate [TIMES]", "migrate the machine, live, and go on in the new one")
def migrate(session: Session, words: list[str]) -> None:
    """Migrate; what is open stays open."""
    times = arguments("migrate", words, 0, 1)
    for _ in range(number(times[0], "TIMES") if times else 1):
        began = time.monotonic_ns()
        session.machine = machine = session.machine.migrate()
        facts, stats = machine.facts(), machine.migration_stats
        assert stats is not None
        session.say(
            f"migrated in {human_ns(time.monotonic_ns() - began)}: {human_bytes(stats.stream_bytes)}, "
            f"{len(stats.rounds)} rounds, {facts['inodes']} inodes, {facts['handles']} handles, "
            f"{facts.get('locks', '?')} locks"
        )
        for note in machine.notes():
            session.say(f"note: {printable(note)}")


@command("check", "will it migrate? what would not survive, and why")
def check(session: Session, words: list[str]) -> None:
    """Print the findings of the pre-flight check."""
    arguments("check", words, 0, 0)
    findings = session.machine.preflight()
    for each in findings:
        who = f"inode {each.inode} ({printable(each.name)}): " if each.inode else ""
        session.say(f"{each.severity}: {who}{printable(each.why)}; {each.what}")
    if not findings:
        session.say("everything would survive a migration")


@command("save FILE", "save the machine to a file of the host; continue with: vmsim shell --restore FILE DIR")
def save(session: Session, words: list[str]) -> None:
    """Save, and go on."""
    path = arguments("save", words, 1, 1)[0]
    stats = session.machine.save(path)
    session.say(f"saved: {printable(path)}, {human_bytes(stats.stream_bytes)}")
    if session.temporary:
        session.say("note: its directory goes when you leave; to keep it, start with: vmsim shell DIR")


@command("rings", "the virtqueues: where they are, indices of both sides, what is in flight")
def rings(session: Session, words: list[str]) -> None:
    """Print the queues."""
    arguments("rings", words, 0, 0)
    machine = session.machine
    packed = bool(machine.device.virtio.features_accepted & F_RING_PACKED)
    for index, queue in enumerate(machine.device.virtio.queues):
        name = "hiprio" if index == 0 else f"requests.{index - 1}"
        state = "" if queue.ready else ", not ready"
        session.say(
            f"{index} {name}: {'packed' if packed else 'split'}, {queue.size} entries{state}, "
            f"desc {queue.desc:#x}, driver {queue.driver:#x}, device {queue.device:#x}, "
            f"{queue.notifications} notifications"
        )
        for line in _position(machine, index, queue, packed=packed):
            session.say(f"    {line}")


def _position(machine: Machine, index: int, queue: QueueConfig, *, packed: bool) -> Iterator[str]:
    """Where both sides of a queue stand (virtio 1.3 sections 2.7 and 2.8)."""
    if not queue.ready:
        return
    if not packed:
        avail, used = (machine.memory.load_u16(area + 2) for area in (queue.driver, queue.device))
        yield f"in memory: avail.idx {avail}, used.idx {used}"
    state = machine.backend.ring(index)
    if state is None:
        yield f"where the back-end stands is not known here, base {queue.base:#x}"
        return
    if packed:
        wraps = f" (wrap {state.avail_wrap})", f" (wrap {state.used_wrap})"
    else:
        wraps = "", ""
    yield (
        f"device: next avail {state.next_avail}{wraps[0]}, next used {state.next_used}{wraps[1]}, "
        f"{len(state.in_flight)} in flight"
    )


@command("inodes", "what the back-end knows: inodes with their lookup counts, open handles, locks")
def inodes(session: Session, words: list[str]) -> None:
    """Print the back-end's tables."""
    arguments("inodes", words, 0, 0)
    for line in session.machine.backend.describe():
        session.say(printable(line))


@command("help [COMMAND]", "this list, or how to use one command")
def show_help(session: Session, words: list[str]) -> None:
    """Print the commands."""
    chosen = list(COMMANDS.values())
    for word in arguments("help", words, 0, 1):
        if word not in COMMANDS:
            raise ShellError(f"{word}: no such command; help lists them")
        chosen = [COMMANDS[word]]
    width = max(len(each.usage) for each in chosen)
    for each in chosen:
        session.say(f"{each.usage:<{width}}  {each.help}")


@command("exit [STATUS]", "end the guest")
def leave(session: Session, words: list[str]) -> None:
    """End."""
    status = arguments("exit", words, 0, 1)
    raise ShellExit(number(status[0], "STATUS") if status else None)
