"""A back-end that serves nothing: it takes a state as a real one would, and so tells whether that is sound.

It asks neither the share nor the rest of the host for anything: what a load finds missing there is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from devices.virtio_fs import parked
from devices.virtio_fs.backend import check_loadable
from devices.virtio_fs.config import VIRTIO_FS_F_NOTIFICATION
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.idmap import IdMap
from devices.virtio_fs.passthrough.xattrmap import XattrMap
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.restore import check_state
from vmsim.vhost.device_type import Burden, PreflightFinding
from vmsim.virtio.chain import Chain
from vmsim.virtio.constants import RING_FEATURES
from vmsim.virtio.rings import RingState


class StateChecker:
    """Implements ``ServingDevice``; UsageError for options that no back-end takes."""

    busy = False
    config_space = b""
    hiprio_count = 1

    def __init__(
        self, options: FsOptions, state_options: StateOptions, *, request_queues: int, notification: bool
    ) -> None:
        for rules in (options.translate_uid, options.translate_gid):
            IdMap(rules)
        XattrMap(options.xattrmap)
        self.virtio_features = RING_FEATURES | (VIRTIO_FS_F_NOTIFICATION if notification else 0)
        self.queue_count = 1 + request_queues + notification
        self._init_options = options.init_options()
        self._state_options = state_options
        self._kept: dict[int, RingState] = {}

    def load_state(self, blob: bytes) -> None:
        """What a load of ``blob`` raises in whatever share."""
        check_loadable(self._state_options)
        state, rings = parked.split(blob, self.queue_count)
        check_state(state, self._state_options, self._init_options)
        if not self._state_options.empty_state:
            self._kept = rings

    def save_state(self) -> Iterator[bytes]:
        """There is none."""
        return iter(())

    def set_features(self, features: int) -> None:
        """Any will do."""

    def handle(self, ring: int, chain: Chain, complete: Callable[[Chain, int], None]) -> int | None:
        """The chain waits for good."""
        return None

    def parked(self, ring: int) -> list[Chain]:
        """Nothing is served, so nothing waits here."""
        return []

    def keep_parked(self, ring: int, state: RingState | None) -> None:
        """Nothing stops."""

    def resume_parked(self, ring: int) -> RingState | None:
        """What the loaded state has in flight: its chains are built, and so checked."""
        return self._kept.pop(ring, None)

    def log_started(self) -> None:
        """Nothing is collected."""

    def log_stopped(self) -> None:
        """Nothing was."""

    def reset(self) -> None:
        """Forget what was loaded."""
        self._kept.clear()

    def idle(self) -> bool:
        """Nothing goes on."""
        return False

    def look(self) -> bool:
        """Nobody waits."""
        return False

    def join_aside(self) -> None:
        """Nothing is served aside."""

    def mounts_changed(self) -> None:
        """No mount is used."""

    def early_state(self) -> Iterator[bytes]:
        """There is none."""
        return iter(())

    def take_early(self, piece: bytes) -> None:
        """What is wrong with it the state will show."""

    def burden(self) -> Burden:
        """It holds nothing."""
        return Burden()

    def facts(self) -> dict[str, int]:
        """It holds nothing."""
        return {}

    def describe(self) -> Iterator[str]:
        """It holds nothing."""
        return iter(())

    def notes(self) -> list[str]:
        """It loads nothing."""
        return []

    def preflight(self) -> list[PreflightFinding]:
        """It saves nothing."""
        return []

    def close(self) -> None:
        """Nothing is held."""
