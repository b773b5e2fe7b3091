"""The part of a device-side ring that both formats share: what is in flight, in what order it is returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from vmsim.errors import MemoryAccessError, RingViolation, StateError, StreamError
from vmsim.limits import CHAIN_BYTES_MAX, QUEUE_SIZE_MAX
from vmsim.virtio.chain import Chain, Descriptor, ParkedChain, build_chain
from vmsim.virtio.constants import DESC_BYTES, F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC
from vmsim.virtio.ring_types import Fence, RingConfig, RingState, UsedWitness, check_config
from vmsim.virtio.violations import ROWS, violation

if TYPE_CHECKING:
    from vmsim.memory import DirtySink, GuestMemory

Used = tuple[Chain, int]
"""A chain and the bytes that were written into it."""


class DeviceRingBase:
    """Bookkeeping of one device-side ring. Subclasses read and write the ring itself."""

    __slots__ = (
        "_careful",
        "_completed",
        "_event_idx",
        "_fence",
        "_in_flight",
        "_in_order",
        "_indirect",
        "_kind",
        "_lenient",
        "_memory",
        "_witness",
        "broken",
        "config",
        "log",
        "log_used",
        "size",
    )

    def __init__(
        self,
        config: RingConfig,
        memory: GuestMemory,
        kind: str,
        *,
        log: DirtySink | None,
        log_used: bool,
        fence: Fence | None,
    ) -> None:
        check_config(config, memory)
        self.config = config
        self.size = config.size
        self.log = log
        self.log_used = log_used
        self.broken: RingViolation | None = None
        self._memory = memory
        self._kind = kind
        self._fence = fence
        self._lenient = config.policy == "lenient"
        self._event_idx = bool(config.features & F_EVENT_IDX)
        self._in_order = bool(config.features & F_IN_ORDER)
        self._indirect = bool(config.features & F_INDIRECT_DESC)
        self._careful = self._in_order
        """Whether chains are returned the long way."""
        self._witness: UsedWitness | None = None
        self._in_flight: dict[int, Chain] = {}
        self._completed: dict[int, int] = {}

    @property
    def witness(self) -> UsedWitness | None:
        """Who is told before and after chains become visible to the driver as used; nobody at first."""
        return self._witness

    @witness.setter
    def witness(self, witness: UsedWitness | None) -> None:
        self._witness = witness
        self._careful = self._in_order or witness is not None

    @property
    def in_flight(self) -> list[Chain]:
        """What was popped and not returned to the driver, oldest first."""
        return list(self._in_flight.values())

    def resubmit(self, parked: ParkedChain) -> Chain:
        """Take a parked chain up again as in flight.

        RingViolation if it leaves this memory or its head is in flight already.
        """
        self._check_parked(parked)
        return self._admit(parked.head, parked.count, parked.descriptors)

    def save(self) -> RingState:
        """Everything about this ring that guest memory does not hold."""
        state = self.position()
        state.in_flight = [chain.park() for chain in self._in_flight.values()]
        state.completed = list(self._completed.items())
        return state

    def restore(self, state: RingState) -> list[Chain]:
        """Go on from ``state``; returns the chains in flight. StreamError names the field that is impossible.

        The event index in guest memory may be stale after this: arm_kicks() writes it anew, and needs_call()
        is true once.
        """
        if len(state.in_flight) > self.size:
            raise StreamError(
                f"{len(state.in_flight)} chains in flight in a queue of {self.size}", field="in_flight"
            )
        self._in_flight.clear()
        self._completed.clear()
        self._seek(state)
        if self._taken(state):
            raise StreamError("the positions do not match the chains in flight", field="in_flight")
        for parked in state.in_flight:
            try:
                self.resubmit(parked)
            except RingViolation as error:
                raise StreamError(f"a chain in flight is malformed: {error}", field="in_flight") from error
        for head, written in state.completed:
            chain = self._in_flight.get(head)
            if not self._in_order or chain is None or not 0 <= written <= chain.writable_bytes:
                raise StreamError(f"chain {head} cannot be completed with {written} bytes", field="completed")
            self._completed[head] = written
        return [chain for chain in self._in_flight.values() if chain.head not in self._completed]

    def _taken(self, state: RingState) -> int:
        """Ring entries between the two positions that no chain in flight accounts for."""
        raise NotImplementedError

    def position(self) -> RingState:
        """Where the ring stands, without what is in flight."""
        raise NotImplementedError

    def _seek(self, state: RingState) -> None:
        raise NotImplementedError

    def _write_used(self, batch: list[Used]) -> None:
        raise NotImplementedError

    def _check_parked(self, parked: ParkedChain) -> None:
        raise NotImplementedError

    def _admit(self, head: int, count: int, descriptors: list[Descriptor]) -> Chain:
        """Resolve a chain and account for it as in flight."""
        if head in self._in_flight:
            self._break(f"{self._kind}.{'head' if self._kind == 'split' else 'id'}_in_flight", head=head)
        try:
            chain = build_chain(self._memory, head, count, descriptors)
        except MemoryAccessError as error:
            self._break(f"{self._kind}.address", head=head, gpa=error.gpa, size_bytes=error.size_bytes)
        if chain.readable_bytes + chain.writable_bytes > CHAIN_BYTES_MAX:
            total = chain.readable_bytes + chain.writable_bytes
            self._break(f"{self._kind}.chain_bytes", head=head, total=total)
        self._in_flight[head] = chain
        return chain

    def _check_elements(self, head: int, descriptors: list[Descriptor]) -> None:
        """What strict rings ask of the elements of a chain: none empty, readable before writable."""
        seen_write = False
        for _, length, is_write in descriptors:
            if not length:
                self._tolerate(f"{self._kind}.zero_length", head=head)
            if is_write:
                seen_write = True
            elif seen_write:
                self._tolerate(f"{self._kind}.write_order", head=head)

    def _read_table(self, head: int, gpa: int, size_bytes: int) -> bytes:
        """One snapshot of an indirect table."""
        if not size_bytes or size_bytes % DESC_BYTES or size_bytes > QUEUE_SIZE_MAX * DESC_BYTES:
            self._break(f"{self._kind}.indirect_length", head=head, size_bytes=size_bytes)
        try:
            return self._memory.read(gpa, size_bytes)
        except MemoryAccessError:
            self._break(f"{self._kind}.indirect_memory", head=head, gpa=gpa, size_bytes=size_bytes)

    def _push_slow(self, chain: Chain, written: int) -> None:
        """Return a chain under IN_ORDER, or find out why it is not in flight."""
        if self.broken is not None:
            return
        if self._in_flight.get(chain.head) is not chain or chain.head in self._completed:
            raise StateError(f"{chain!r} is not in flight")
        if not 0 <= written <= chain.writable_bytes:
            raise StateError(f"{written} bytes written into {chain!r}")
        if not self._in_order:
            del self._in_flight[chain.head]
            self._give([(chain, written)])
            return
        self._completed[chain.head] = written
        self._flush_in_order()

    def _flush_in_order(self) -> None:
        """Return what is complete up to the oldest chain that is not.

        One used entry stands for a batch (section 2.7.9, 2.8.8), but a skipped buffer counts as used
        completely, so a batch ends at each buffer that was not filled.
        """
        batch: list[Used] = []
        for chain in list(self._in_flight.values()):
            written = self._completed.pop(chain.head, -1)
            if written < 0:
                break
            del self._in_flight[chain.head]
            batch.append((chain, written))
            if written != chain.writable_bytes:
                self._give(batch)
                batch = []
        if batch:
            self._give(batch)

    def _give(self, batch: list[Used]) -> None:
        witness = self._witness
        if witness is None:
            self._write_used(batch)
            return
        chains = [chain for chain, _ in batch]
        witness.giving(chains)
        self._write_used(batch)
        witness.given(chains)

    def _mark_payload(self, chain: Chain, written: int) -> None:
        left = written
        for gpa, length in chain.write_ranges:
            if left <= 0:
                return
            self._mark(gpa, min(left, length))
            left -= length

    def _mark_ring(self, gpa: int, size_bytes: int) -> None:
        """The ring areas are logged to the vhost log only when the ring's F_LOG flag asks for it."""
        if self._memory.dirty is not None:
            self._memory.dirty.mark(gpa, size_bytes)
        if self.log is not None and self.log_used:
            self.log.mark(gpa, size_bytes)

    def _mark(self, gpa: int, size_bytes: int) -> None:
        if self._memory.dirty is not None:
            self._memory.dirty.mark(gpa, size_bytes)
        if self.log is not None:
            self.log.mark(gpa, size_bytes)

    def _tolerate(self, key: str, **details: object) -> None:
        """Pass under the lenient policy, break the ring under the strict one."""
        if not (self._lenient and ROWS[key].lenient):
            self._break(key, **details)

    def _break(self, key: str, **details: object) -> NoReturn:
        self.broken = violation(key, **details)
        self._in_flight.clear()
        self._completed.clear()
        self._raise_broken()  # another one: this has no frames that would keep guest memory mapped

    def _raise_broken(self) -> NoReturn:
        assert self.broken is not None
        raise type(self.broken)(
            self.broken.message, spec=self.broken.spec, hint=self.broken.hint, **self.broken.details
        )
