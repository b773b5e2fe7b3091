"""One ring of a vhost back-end: its working loop, its draining. Its states: :mod:`vmsim.vhost.ring_states`.

Work is done while the ring is both started and enabled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from vmsim.errors import VmsimError, contained
from vmsim.limits import QUEUE_SIZE_MAX
from vmsim.memory import DirtySink, GuestMemory
from vmsim.schedule import Schedule
from vmsim.vhost.constants import VHOST_VRING_F_LOG
from vmsim.vhost.messages import SPEC, MessageError
from vmsim.vhost.payloads import VringAddr
from vmsim.vhost.ring_states import (
    FAIL,
    KICKABLE,
    NOTIFIER,
    ON,
    SERVED,
    START,
    STARTED,
    STOP,
    STOPPED,
    TAKE_UP,
    WORKING,
    after,
)
from vmsim.vhost.seams import BackendDevice, BackendLink
from vmsim.vhost.tracking import Tracking, track
from vmsim.virtio.chain import Chain
from vmsim.virtio.ring_types import DeviceRing, Fence, RingConfig
from vmsim.virtio.rings import make_device_ring

Policy = Literal["strict", "lenient"]


class BackendRing:
    """One ring. ``others`` are the high-priority rings to look at between two of its requests.

    ``live`` is the device-side ring while it may be worked on, else None.
    """

    __slots__ = (
        "_backlog", "_busy", "_cut", "_device", "_features", "_fence", "_handle", "_inflight", "_log",
        "_memory", "_outstanding", "_policy", "_schedule", "_tracking", "_trusted", "addr", "base", "broken",
        "enabled", "index", "link", "live", "num", "others", "ring", "state",
    )

    def __init__(
        self, index: int, device: BackendDevice, schedule: Schedule, policy: Policy,
        fence: Fence | None = None,
    ) -> None:  # fmt: skip
        self.index = index
        self.link: BackendLink | None = None
        self.others: Sequence[BackendRing] = ()
        self.num = 0
        self.addr: VringAddr | None = None
        self.base = 0
        self.state = STOPPED
        self.enabled = False
        self.broken = ""
        """Why the ring is not served any more."""
        self.ring: DeviceRing | None = None
        self.live: DeviceRing | None = None
        self._device = device
        self._handle = device.handle
        self._schedule = schedule
        self._policy: Policy = policy
        self._features = 0
        self._memory: GuestMemory = GuestMemory(())
        self._log: DirtySink | None = None
        self._fence = fence
        self._inflight: memoryview | None = None
        self._tracking: Tracking | None = None
        self._trusted = False
        """Handed to us since this ring last ran: what the region says counts, whoever wrote it."""
        self._outstanding: dict[int, Chain] = {}
        self._backlog: deque[Chain] = deque()
        """Taken by who served this ring before, and not looked at yet."""
        self._busy = False
        self._cut = False
        """The last turn was over before the ring was empty and kicks were asked for again."""

    # -- configuration, by messages

    def set_num(self, num: int) -> None:
        """SET_VRING_NUM."""
        self._require_stopped("SET_VRING_NUM")
        if not 0 < num <= QUEUE_SIZE_MAX:
            raise MessageError(f"SET_VRING_NUM: ring {self.index} of {num} entries", spec=SPEC)
        self.num = num

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE; the word is that of GET_VRING_BASE."""
        self._require_stopped("SET_VRING_BASE")
        self.base = base

    def set_addr(self, addr: VringAddr) -> None:
        """SET_VRING_ADDR; on a started ring only the log flag may change."""
        if self.state in ON and self.addr is not None and addr[2:5] != self.addr[2:5]:
            raise MessageError(f"SET_VRING_ADDR: ring {self.index} moves while it is started", spec=SPEC)
        self._locate(addr)
        self.addr = addr
        if self.ring is not None:
            self.ring.log_used = bool(addr.flags & VHOST_VRING_F_LOG)

    def set_memory(self, memory: GuestMemory, features: int, log: DirtySink | None) -> None:
        """Use this picture of guest memory, these features and this log from now on."""
        changed = memory is not self._memory
        self._memory, self._features, self._log = memory, features, log
        if self.ring is None:
            return
        self.ring.log = log
        if changed:
            state = self.ring.save()
            # What is in flight keeps its views of the mappings; new chains are resolved in the new picture.
            in_flight, self._outstanding = self._outstanding, {}
            try:
                self.ring = self._make()
                chains = {chain.head: chain for chain in self.ring.restore(state)}
            except Exception as error:
                self._fail(contained(error))
                return
            self._outstanding = {key: chains[old.head] for key, old in in_flight.items()}
            self._backlog = deque(chains[old.head] for old in self._backlog)
            if self._tracking is not None:
                self._tracking.attach(self.ring)
            self._update()

    def set_inflight(self, region: memoryview | None) -> None:
        """SET_INFLIGHT_FD: where this ring records its requests in flight, from its next start on."""
        self._require_stopped("SET_INFLIGHT_FD")
        self._inflight = region
        self._trusted = region is not None

    def set_enabled(self, enabled: bool) -> None:
        """SET_VRING_ENABLE; a ring that was started meanwhile is processed.

        So is one that is to be disabled: a kick may be under way that the front-end drops next, and whoever
        goes on with this ring would wait for another one.
        """
        if not enabled and self.live is not None and self.state is WORKING:
            self.kicked()
        self.enabled = enabled
        self._update()
        if self.state in ON:
            self.kicked()

    # -- work

    def kicked(self) -> None:
        """The driver says that there is work; the first kick starts the ring."""
        ring = self.live
        if ring is None or self.state is STARTED:
            self._first_kick()
            if self._backlog:
                return  # its turn is over
            ring = self.live
        if ring is None or self._busy:
            return
        take = ring.pop if self._tracking is None else self._take
        try:
            if self._backlog and not self._go_on(ring):
                return
            chain = take()
        except Exception as error:
            self._fail(contained(error))
            return
        if chain is not None or self._cut:
            self._work(ring, chain, take)

    def _take(self) -> Chain | None:
        """``pop``, recorded in the in-flight region."""
        assert self.ring is not None
        assert self._tracking is not None
        chain = self.ring.pop()
        if chain is not None:
            self._tracking.taken(chain)
        return chain

    def _work(self, ring: DeviceRing, chain: Chain | None, take: Callable[[], Chain | None]) -> None:
        """Process the ring, then ask for kicks and check again; none are wanted between two chains."""
        handle = self._handle
        index = self.index
        complete = self.complete
        pushed = False
        link = self.link
        over = None if link is None else link.turn()
        self._busy = True
        self._cut = False
        try:
            while True:
                while chain is not None:
                    written = handle(index, chain, complete)
                    if written is None:
                        self._outstanding[id(chain)] = chain
                    else:
                        ring.push(chain, written)
                        pushed = True
                    if self.live is not ring:
                        return
                    if over is not None and over():
                        assert link is not None
                        self._cut = True
                        link.reschedule(index)
                        return
                    chain = take()
                    if chain is not None:
                        ring.suppress_kicks()
                        for other in self.others:
                            other.kicked()
                if not ring.arm_kicks():
                    break
                chain = take()
        except Exception as error:
            self._fail(contained(error))
        finally:
            self._busy = False
            if pushed and self.link is not None and ring.needs_call():
                self.link.call(index)

    def complete(self, chain: Chain, written: int) -> None:
        """A chain that ``handle`` left open is done; ignored if it was given up meanwhile."""
        current = self._outstanding.pop(id(chain), None)
        ring = self.ring
        if current is None or ring is None:
            return
        try:
            ring.push(current, written)
        except Exception as error:
            self._fail(contained(error))
            return
        if self.link is not None and ring.needs_call():
            self.link.call(self.index)

    # -- life

    def stop(self) -> int:
        """GET_VRING_BASE: finish what can be finished, park the rest, and say where the ring stands.

        StallError if requests neither end nor can be parked; the ring then goes on as before.
        """
        ring = self.ring
        if ring is not None:
            self.live = None
            parked: list[Chain] = []
            try:
                if self._busy:
                    self._schedule.wait(lambda: not self._busy, f"ring {self.index} to finish a request")
                parked = self._device.parked(self.index)
                for chain in parked:
                    self._outstanding.pop(id(chain), None)
                if self._outstanding:
                    self._schedule.wait(lambda: not self._outstanding, f"ring {self.index} to drain")
            except BaseException:
                self._update()
                self._backlog.extend(parked)
                self.kicked()
                raise
            if self.state is not STARTED:
                state = ring.save()
                self._device.keep_parked(self.index, state if state.in_flight else None)
            self.base = ring.base_word()
        self._stopped()
        return self.base

    def reset(self) -> None:
        """RESET_DEVICE: stopped, disabled, nothing in flight."""
        if self._busy:
            self._schedule.wait(lambda: not self._busy, f"ring {self.index} to finish a request")
        self._device.parked(self.index)
        self._outstanding.clear()
        self.enabled = False
        self._stopped()
        self.base = 0

    def _stopped(self) -> None:
        self.state = after(self.state, STOP)
        self.broken = ""
        if self._tracking is not None:
            self._tracking.detach()
        self._backlog.clear()
        self._cut = False
        self.ring = self.live = self._tracking = None

    def forget_inflight(self) -> None:
        """The device was reset: what the in-flight region says means nothing any more."""
        if self._inflight is not None:
            self._inflight[:] = bytes(len(self._inflight))

    @property
    def started(self) -> bool:
        """In the specification's sense, broken or not."""
        return self.state in ON

    @property
    def running(self) -> bool:
        """Whether the ring may touch guest memory: it was started, or will be by the next kick."""
        return self.state is not STOPPED

    def expect_kicks(self) -> None:
        """SET_VRING_KICK, or the message that kicks in its place."""
        self.state = after(self.state, NOTIFIER)

    def _first_kick(self) -> None:
        """Start the ring; once it is enabled as well, go on with what was parked."""
        if self.state is not KICKABLE and self.state is not STARTED:
            return
        try:
            if self.state is KICKABLE:
                self.ring = self._make()
                self.ring.set_base_word(self.base)
                if self._inflight is not None:
                    self._tracking = track(self.ring, self._inflight)
                self.state = after(self.state, START)
                self._update()
            if self.live is not None and self.state is STARTED and not self._busy:
                self._take_up(self.live)
        except Exception as error:
            self._fail(contained(error))

    def _take_up(self, ring: DeviceRing) -> None:
        """Handle what was in flight when this ring stopped, or its former back-end died."""
        self.state = after(self.state, TAKE_UP)
        chains, recovered = self._resume(ring)
        self._backlog.extend(chains)
        self._go_on(ring)
        # After a restore the event index in guest memory may be stale: write it anew, whatever it says.
        ring.arm_kicks()
        if recovered and self.link is not None:
            self.link.call(self.index)  # the former back-end may have died before it could

    def _go_on(self, ring: DeviceRing) -> bool:
        """A turn of the backlog; whether it is done, and the ring still there."""
        link = self.link
        over = None if link is None else link.turn()
        self._busy = True
        try:
            while self._backlog and self.live is ring:
                chain = self._backlog.popleft()
                self._outstanding[id(chain)] = chain
                written = self._handle(self.index, chain, self.complete)
                if written is not None:
                    self.complete(chain, written)
                if over is not None and over():
                    assert link is not None
                    link.reschedule(self.index)
                    return False
        finally:
            self._busy = False
        return self.live is ring

    def _resume(self, ring: DeviceRing) -> tuple[list[Chain], bool]:
        """What is to be handled first, and whether that comes from a back-end that died.

        Parked requests belong to the place where this ring stopped: one that starts elsewhere is a new ring.
        """
        state = self._device.resume_parked(self.index)
        tracking = self._tracking
        trusted, self._trusted = self._trusted, False
        if state is not None and ring.position().same_place(state):
            chains = ring.restore(state)
            if trusted and tracking is not None and tracking.records(state):
                return chains, False
        elif trusted and tracking is not None and (recovered := tracking.recover()) is not None:
            return ring.restore(recovered), True
        else:
            chains = []
        if tracking is not None:
            tracking.begin()
        return chains, False

    def _make(self) -> DeviceRing:
        if self.addr is None or not self.num:
            raise MessageError(f"ring {self.index} is kicked before it has a size and addresses", spec=SPEC)
        desc, driver, device = self._locate(self.addr)
        config = RingConfig(self.num, desc, driver, device, self._features, policy=self._policy)
        log_used = bool(self.addr.flags & VHOST_VRING_F_LOG)
        return make_device_ring(config, self._memory, log=self._log, log_used=log_used, fence=self._fence)

    def _locate(self, addr: VringAddr) -> tuple[int, int, int]:
        """The guest-physical addresses of descriptor, driver and device area."""
        find = self._memory.gpa_of_user
        desc, driver, device = find(addr.desc, 1), find(addr.avail, 1), find(addr.used, 1)
        if addr.flags & VHOST_VRING_F_LOG and addr.log != device:
            raise MessageError(
                f"ring {self.index}: its used ring at {device:#x} is to be logged at {addr.log:#x}", spec=SPEC
            )
        return desc, driver, device

    def _require_stopped(self, message: str) -> None:
        if self.state in ON:
            raise MessageError(f"{message}: ring {self.index} is started", spec=SPEC)

    def _update(self) -> None:
        self.live = self.ring if self.enabled and self.state in SERVED else None

    def _fail(self, error: VmsimError) -> None:
        """Stop working on the ring and tell the front-end; only a reset brings it back."""
        self.state = after(self.state, FAIL)
        self.broken = str(error)  # not the error, whose frames would keep guest memory mapped
        self.live = None
        if self.link is not None:
            self.link.ring_error(self.index, str(error))
