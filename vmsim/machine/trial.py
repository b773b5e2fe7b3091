"""Loading a stream for nothing but to see whether it loads: the loader's own checks, without a share.

All of the loader runs: configuration, memory, guest, device, and what stands for its back-end
(``DeviceType.checker``). Nothing is started, and nothing outside this process is looked at.
"""

from __future__ import annotations

import os

from vmsim.machine.arrival import Arrival
from vmsim.machine.assembled import EXTERNAL
from vmsim.machine.config import MachineConfig
from vmsim.machine.installed import find_device
from vmsim.machine.local_backend import Backend
from vmsim.machine.machine import Machine
from vmsim.machine.parts import MachineBackend, Seams
from vmsim.migration.channel import Channel
from vmsim.schedule import Schedule
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.device_type import ServingDevice

NO_SHARE = os.sep
"""A directory that is there; nobody opens it."""


class TrialBackend(Backend):
    """Takes a state and says whether it is sound."""

    def _serving(self, config: MachineConfig) -> ServingDevice:
        return self.type.checker(
            config.options, request_queues=config.queues, notification=config.notification
        )


def try_to_load(channel: Channel) -> None:
    """Raise what ``Machine.receive`` raises because of the stream in ``channel``, which it closes.

    A stream of a machine whose back-end is kept is loaded as if that were at hand. It takes the memory of
    the machine's pages meanwhile.
    """
    kept: list[TrialBackend] = []

    def built(
        config: MachineConfig, share: str, schedule: Schedule, seams: Seams, backend: MachineBackend | None
    ) -> Machine:
        kind = config.migration_load or config.migration
        if kind == EXTERNAL or not find_device(config.device).has_state(config.options):
            kept.append(TrialBackend(config, share, schedule, seams))
        return Machine.built(config, share, schedule, seams, kept[0] if kept else None)

    seams = Seams(start=TrialBackend)
    try:
        Arrival(built, NO_SHARE, ImmediateSchedule(), seams).receive(channel).close()
    finally:
        for backend in kept:
            backend.close()
