"""The front-end half of the virtio-fs device: the virtio device, its back-end's connection, their life."""

from __future__ import annotations

from collections.abc import Callable

from devices.virtio_fs.config import (
    VIRTIO_FS_F_NOTIFICATION,
    FsDeviceOptions,
    check_migration_kind,
)
from vmsim.errors import MigrationError, PeerError, StateError, contained
from vmsim.memory import DirtyLog, GuestMemory
from vmsim.vhost.dialects.base import Dialect
from vmsim.vhost.frontend import FrontendOptions, RingSetup, VhostFrontend
from vmsim.vhost.kept import KeptInflight
from vmsim.vhost.seams import FrontendHost, Transport
from vmsim.virtio.constants import DEVICE_ID_FS, F_RING_PACKED, RING_FEATURES
from vmsim.virtio.device import VirtioDevice
from vmsim.virtio.mmio import MmioRegisters


class VirtioFsDevice:
    """One virtio-fs device of a machine.

    ``attach`` connects it to a back-end; ``registers`` is what the guest's driver sees;
    ``virtio.on_interrupt`` is for the machine to set. ``pause`` and ``resume`` stop and restart the rings
    with the virtual machine; the driver's own doings (activation, reset, queue reset) are handled here.
    """

    def __init__(
        self, options: FsDeviceOptions, memory: GuestMemory, host: FrontendHost, dialect: Dialect,
        frontend_options: FrontendOptions | None = None,
    ) -> None:
        self.options = options
        self.memory = memory
        self.dialect = dialect
        self.frontend: VhostFrontend | None = None
        self.running = True
        """Whether the virtual machine runs; rings are started only while it does."""
        self._migration_save = self._migration_load = options.migration
        self.migration_save = options.migration_save or options.migration
        self.migration_load = options.migration_load or options.migration
        self._host = host
        self._frontend_options = frontend_options
        self._inflight = KeptInflight(host)
        sizes = [options.queue_size] * options.queue_count
        self.virtio = VirtioDevice(DEVICE_ID_FS, self._offer(-1), options.config_space(), sizes)
        self.virtio.on_activate = self._activate
        self.virtio.on_reset = self._reset
        self.virtio.on_queue_reset = self._queue_reset
        self.virtio.on_queue_ready = self._queue_ready
        self.registers = MmioRegisters(self.virtio)

    def describe(self) -> str:
        """How messages name the device."""
        return f'virtio-user-fs device {self.options.path} (tag: "{self.options.tag}")'

    # -- the property "migration"

    @property
    def migration(self) -> str:
        """The allowed kind of migration: none, external, internal, or ``save/load`` if they differ."""
        save, load = self.migration_save, self.migration_load
        return save if save == load else f"{save}/{load}"

    @migration.setter
    def migration(self, kind: str) -> None:
        self.migration_save = self.migration_load = kind

    @property
    def migration_save(self) -> str:
        """The kind that is allowed, and checked, when the device is saved."""
        return self._migration_save

    @migration_save.setter
    def migration_save(self, kind: str) -> None:
        self._migration_save = check_migration_kind(kind)

    @property
    def migration_load(self) -> str:
        """The kind that is allowed, and checked, when the device is loaded."""
        return self._migration_load

    @migration_load.setter
    def migration_load(self, kind: str) -> None:
        self._migration_load = check_migration_kind(kind)

    # -- connection

    def attach(self, transport: Transport, *, reset: bool = True) -> None:
        """Connect to a back-end; ``reset`` it unless it keeps a session that the guest goes on with.

        PeerError if the back-end refuses or cannot do what the driver has accepted already; the transport is
        closed then and the device stays detached.
        """
        if self.frontend is not None:
            raise StateError(f"{self.options.path} is attached already")
        frontend = VhostFrontend(
            transport, self._host, self.dialect, self.options.path, self.options.queue_count,
            self._frontend_options, self._inflight,
        )
        try:
            frontend.connect()
            offered = self._offer(frontend.features_offered)
            missing = self.virtio.features_accepted & ~offered
            if missing:
                raise PeerError(
                    f"{self.options.path}: the back-end lacks features {missing:#x} that the driver uses",
                    hint="start the back-end with the features of the source",
                )
            frontend.keeps_session = not reset
            if reset:
                frontend.reset_device()
        except BaseException:
            frontend.close()
            raise
        self.frontend = frontend
        self.virtio.features_offered = offered
        transport.on_call = self._called
        transport.on_ring_error = self._ring_error
        self.virtio.on_notify = frontend.kick

    @property
    def attached(self) -> bool:
        """Whether it is connected to a back-end."""
        return self.frontend is not None

    def reattach(self, transport: Transport, *, died: bool = False) -> None:
        """Connect again after a connection broke, and go on where the back-end stopped the rings.

        It must be detached, and the back-end have kept its session. ``died``: it has not, another one has
        taken its place; requests in flight are submitted again if the former one recorded them (protocol
        feature INFLIGHT_SHMFD), and lost otherwise. Errors are those of ``attach``.
        """
        self.attach(transport, reset=False)
        if self.virtio.live and not died:
            ready = [index for index, queue in enumerate(self.virtio.queues) if queue.ready]
            self._keep_bases(self._connected.ask_bases(ready))
        elif self.virtio.live and not self.virtio.features_accepted & F_RING_PACKED:
            # As QEMU: what is known of a split ring is its used index; a packed one's is in the buffer alone.
            for queue in self.virtio.queues:
                if queue.ready:
                    queue.base = self.memory.load_u16(queue.device + 2)
        self.resume()

    def detach(self) -> None:
        """Let go of the back-end, which keeps its session; rings must be stopped. May be called twice."""
        frontend, self.frontend = self.frontend, None
        if frontend is None:
            return
        self.virtio.on_notify = _ignore_notification
        frontend.close()

    def close(self) -> None:
        """Detach, and give everything back. May be called twice."""
        self.detach()
        self._inflight.forget()

    # -- rings

    def pause(self) -> None:
        """The virtual machine stops: stop the rings, drained. After a failure they go on."""
        if self.frontend is not None and self.frontend.running:
            self._keep_bases(self.frontend.stop_rings())
        self.running = False

    def resume(self, *, kick: bool = True) -> None:
        """The virtual machine goes on: start the rings if the driver had activated the device.

        Without ``kick`` the back-end processes nothing before ``kick()``: everything that can fail has been
        done by then.
        """
        self.running = True
        if self.virtio.live and not self._connected.running:
            self._start(kick=kick)

    def kick(self) -> None:
        """Kick all started rings, unsolicited."""
        if self.frontend is not None:
            self.frontend.kick_all()

    @property
    def _connected(self) -> VhostFrontend:
        if self.frontend is None:
            raise StateError(f"{self.options.path} has no back-end")
        return self.frontend

    def _offer(self, backend_features: int) -> int:
        notification = VIRTIO_FS_F_NOTIFICATION if self.options.notification else 0
        return backend_features & (self.options.features & RING_FEATURES | notification)

    def _setup(self, index: int) -> RingSetup:
        queue = self.virtio.queues[index]
        return RingSetup(index, queue.size, queue.desc, queue.driver, queue.device, queue.base)

    def _start(self, *, kick: bool = True) -> None:
        rings = [self._setup(index) for index, queue in enumerate(self.virtio.queues) if queue.ready]
        frontend = self._connected
        try:
            frontend.start(self.virtio.features_accepted, self.memory, rings, kick=kick)
        except BaseException:
            self._keep_bases(frontend.bases)
            raise

    def _keep_bases(self, bases: dict[int, int]) -> None:
        for index, base in bases.items():
            self.virtio.queues[index].base = base

    def _activate(self) -> None:
        if not self.running:
            return
        try:
            self._start()
        except Exception as error:
            self.virtio.needs_reset(str(contained(error)))

    def _reset(self) -> None:
        """A device reset by the driver: nothing of the guest's may be touched any more."""
        if self.frontend is None:
            return
        try:
            try:
                if self.frontend.running:
                    self.frontend.stop_rings()
            finally:
                self.frontend.reset_device()
        except Exception as error:
            self.virtio.reset_reason = str(contained(error))

    def _queue_reset(self, index: int) -> None:
        self._on_queue(lambda frontend: frontend.stop_ring(index))

    def _queue_ready(self, index: int) -> None:
        self._on_queue(lambda frontend: frontend.start_ring(self._setup(index)))

    def _on_queue(self, act: Callable[[VhostFrontend], object]) -> None:
        if self.frontend is None or not self.frontend.running:
            return
        try:
            act(self.frontend)
        except Exception as error:
            self.virtio.needs_reset(str(contained(error)))

    def _called(self, ring: int) -> None:
        self.virtio.used_buffers()

    def _ring_error(self, ring: int, why: str) -> None:
        self.virtio.needs_reset(f"ring {ring}: {why}")

    # -- dirty log

    def start_log(self, dirty: DirtyLog) -> None:
        """Have the back-end log its writes into ``dirty``; MigrationError if it cannot."""
        frontend = self._connected
        blocker = frontend.log_blocker()
        if blocker:
            raise MigrationError(blocker, step="start dirty log", side="source")
        dirty.attach_bitmap(self.options.path, frontend.start_log(self.memory))

    def stop_log(self, dirty: DirtyLog) -> None:
        """End that, after taking what the bitmap holds. May be called twice."""
        dirty.detach_bitmap(self.options.path)
        if self.frontend is not None:
            self.frontend.stop_log()


def _ignore_notification(queue: int) -> None:
    """Nobody is there to work on the queue."""
