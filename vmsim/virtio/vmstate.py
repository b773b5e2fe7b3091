"""virtio_save and virtio_load of QEMU, byte for byte, for the virtio-mmio transport.

The main part has a fixed layout; behind it come the subsections of vmstate ``virtio``, one row each in
:data:`SUBSECTIONS`, in QEMU's order of emission. All numbers are big-endian. :mod:`vmsim.virtio.vmstate_pci`
does the same for virtio-pci.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol

from vmsim.limits import VIRTIO_QUEUE_MAX
from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.virtio.state import VirtioQueueState, VirtioState
from vmsim.wire.layout import U8, U16, U32, Layout

CONFIG_MAX: Final = 4096
"""Bytes of a configuration space that a stream may carry."""
VRING_ALIGN: Final = 4096
"""The legacy ring alignment, which the stream carries for virtio-mmio only."""

_VERSION_1 = 1 << 32
_RING_PACKED = 1 << 34
_FEATURES_OK = 8


class Head(NamedTuple):
    """Rows 2 to 6 of virtio_save: what follows the transport's save_config."""

    status: U8
    isr: U8
    queue_sel: U16
    guest_features_low: U32
    config_len: U32


HEAD = Layout(Head, ">")
_AREAS = Struct(">QQ")  # virtio/virtqueues: avail, used
_NUM_DEFAULT = Struct(">I")  # virtio/ringsize
_PACKED = Struct(">HBHBI")  # virtio/packed_virtqueues: last_avail_idx, wrap, used_idx, wrap, inuse
_UNUSED_PACKED = _PACKED.pack(0, 1, 0, 1, 0)


class TransportState(Protocol):
    """The part of virtio_save that belongs to the transport (reference: save_config, extra_state)."""

    extra_name: str
    """The vmstate inside ``virtio/extra_state``."""

    def save_config(self, out: VmWriter, state: VirtioState) -> None:
        """Write what comes before the status."""
        ...

    def load_config(self, src: VmReader, state: VirtioState) -> None:
        """Read it."""
        ...

    def save_queue(self, out: VmWriter, index: int, queue: VirtioQueueState) -> None:
        """Write one queue of the main part."""
        ...

    def load_queue(self, src: VmReader) -> VirtioQueueState:
        """Read it."""
        ...

    def save_extra(self, out: VmWriter, state: VirtioState) -> None:
        """Write the subsections of the vmstate ``extra_name``."""
        ...

    def load_extra(self, src: VmReader, state: VirtioState) -> None:
        """Read them."""
        ...


class Subsection(NamedTuple):
    """One subsection of vmstate ``virtio``; ``save`` and ``load`` handle what follows its header."""

    name: str
    needed: Callable[[VirtioState], bool]
    save: Callable[[VmWriter, VirtioState, TransportState], None]
    load: Callable[[VmReader, VirtioState, TransportState], None]


def _save_areas(out: VmWriter, state: VirtioState, transport: TransportState) -> None:
    save_table(out, "vqs", _AREAS, [(q.avail, q.used) for q in state.queues])


def _load_areas(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    state.host_features |= _VERSION_1
    for queue, (avail, used) in zip(state.queues, load_table(src, "vqs", _AREAS, state), strict=True):
        queue.avail, queue.used = avail, used


def _save_ring_sizes(out: VmWriter, state: VirtioState, transport: TransportState) -> None:
    save_table(out, "num_default", _NUM_DEFAULT, [(q.num_default,) for q in state.queues])


def _load_ring_sizes(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    for queue, (size,) in zip(state.queues, load_table(src, "num_default", _NUM_DEFAULT, state), strict=True):
        queue.num_default = size


def _save_packed(out: VmWriter, state: VirtioState, transport: TransportState) -> None:
    rows = [
        (q.last_avail_idx, q.last_avail_wrap, q.used_idx, q.used_wrap, q.inuse) for q in state.queues
    ]
    save_table(out, "packed_virtqueues", _PACKED, rows, _UNUSED_PACKED)


def _load_packed(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    state.host_features |= _RING_PACKED
    table = load_table(src, "packed_virtqueues", _PACKED, state, _UNUSED_PACKED)
    for queue, (avail, avail_wrap, used, used_wrap, inuse) in zip(state.queues, table, strict=True):
        if avail_wrap > 1 or used_wrap > 1:
            src.refuse("packed_virtqueues", "a wrap counter is neither 0 nor 1")
        queue.last_avail_idx, queue.last_avail_wrap = avail, avail_wrap
        queue.used_idx, queue.used_wrap, queue.inuse = used, used_wrap, inuse


def _load_features(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    features = src.be64("guest_features")
    if features & 0xFFFFFFFF != state.guest_features:
        src.refuse("guest_features", f"{features:#x} disagrees with the low word {state.guest_features:#x}")
    state.guest_features = features


def _load_endian(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    state.device_endian = src.u8("device_endian")
    if state.device_endian not in (1, 2):
        src.refuse("device_endian", f"{state.device_endian} is neither 1 (little) nor 2 (big)")


def _save_extra(out: VmWriter, state: VirtioState, transport: TransportState) -> None:
    transport.save_extra(out, state)


def _load_extra(src: VmReader, state: VirtioState, transport: TransportState) -> None:
    transport.load_extra(src, state)


def _flag_row(name: str, attribute: str) -> Subsection:
    """A subsection of one byte that is present while ``attribute`` is true."""

    def load(src: VmReader, state: VirtioState, transport: TransportState) -> None:
        setattr(state, attribute, src.flag(attribute))

    return Subsection(
        name, lambda state: bool(getattr(state, attribute)),
        lambda out, state, transport: out.u8(attribute, 1), load,
    )


SUBSECTIONS: Final = (
    Subsection(
        "virtio/device_endian", lambda state: state.device_endian is not None,
        lambda out, state, transport: out.u8("device_endian", state.device_endian or 0), _load_endian,
    ),
    Subsection(
        "virtio/64bit_features", lambda state: state.host_features >> 32 != 0,
        lambda out, state, transport: out.be64("guest_features", state.guest_features), _load_features,
    ),
    Subsection(
        "virtio/virtqueues", lambda state: bool(state.host_features & _VERSION_1), _save_areas, _load_areas,
    ),
    Subsection(
        "virtio/ringsize", lambda state: any(q.num != q.num_default for q in state.queues),
        _save_ring_sizes, _load_ring_sizes,
    ),
    _flag_row("virtio/broken", "broken"),
    Subsection("virtio/extra_state", lambda state: True, _save_extra, _load_extra),
    _flag_row("virtio/started", "started"),
    Subsection(
        "virtio/packed_virtqueues", lambda state: bool(state.host_features & _RING_PACKED),
        _save_packed, _load_packed,
    ),
    _flag_row("virtio/disabled", "disabled"),
)
_ROWS = {row.name: row for row in SUBSECTIONS}
_VERSIONS = dict.fromkeys(_ROWS, 1)


def save_table(
    out: VmWriter, name: str, layout: Struct, rows: list[tuple[Any, ...]], unused: bytes | None = None
) -> None:
    """One record per possible queue (VIRTIO_QUEUE_MAX); those that the device has not are ``unused``."""
    used = b"".join([layout.pack(*row) for row in rows])
    blank = unused if unused is not None else bytes(layout.size)
    out.buffer(name, used + blank * (VIRTIO_QUEUE_MAX - len(rows)))


def load_table(
    src: VmReader, name: str, layout: Struct, state: VirtioState, unused: bytes | None = None
) -> list[tuple[Any, ...]]:
    """The records of the device's queues; BadField if one of the others is in use."""
    data = src.buffer(name, layout.size * VIRTIO_QUEUE_MAX)
    end = layout.size * len(state.queues)
    blank = unused if unused is not None else bytes(layout.size)
    if data[end:] != blank * (VIRTIO_QUEUE_MAX - len(state.queues)):
        src.refuse(name, f"a queue past the {len(state.queues)} queues of the device is in use")
    return list(layout.iter_unpack(data[:end]))


class MmioTransport:
    """The virtio-mmio transport with modern registers (version 2)."""

    extra_name = "virtio_mmio"
    _state = "virtio_mmio/state"
    _queue = Struct(">HB6I")  # num, enabled, desc, avail, used: low word, high word

    def save_config(self, out: VmWriter, state: VirtioState) -> None:
        """The selector registers."""
        out.be32("host_features_sel", state.host_features_sel)
        out.be32("guest_features_sel", state.guest_features_sel)
        out.be32("guest_page_shift", state.guest_page_shift)

    def load_config(self, src: VmReader, state: VirtioState) -> None:
        """The selector registers."""
        state.host_features_sel = src.be32("host_features_sel")
        state.guest_features_sel = src.be32("guest_features_sel")
        state.guest_page_shift = src.be32("guest_page_shift")

    def save_queue(self, out: VmWriter, index: int, queue: VirtioQueueState) -> None:
        """Size, alignment, descriptor area, index."""
        out.be32("num", queue.num)
        out.be32("align", VRING_ALIGN)
        out.be64("desc", queue.desc)
        out.be16("last_avail_idx", queue.last_avail_idx)

    def load_queue(self, src: VmReader) -> VirtioQueueState:
        """Size, alignment (of no use to a modern device), descriptor area, index."""
        num = src.be32("num")
        src.be32("align")
        desc = src.be64("desc")
        index = src.be16("last_avail_idx")
        return VirtioQueueState(num=num, num_default=num, desc=desc, last_avail_idx=index)

    def save_extra(self, out: VmWriter, state: VirtioState) -> None:
        """``virtio_mmio/state``."""
        with out.subsection(self._state, 1):
            out.array("be32", "guest_features", split_words(state.guest_features))
            save_table(out, "vqs", self._queue, proxy_rows(state))

    def load_extra(self, src: VmReader, state: VirtioState) -> None:
        """``virtio_mmio/state``."""
        for _ in src.subsections(self.extra_name, {self._state: 1}):
            merge_features(src, state, join_words(*src.array("be32", "guest_features", 2)))
            merge_proxy(src, state, load_table(src, "vqs", self._queue, state))


def split_words(value: int) -> tuple[int, int]:
    """Low and high 32 bits."""
    return value & 0xFFFFFFFF, value >> 32


def join_words(low: int, high: int) -> int:
    """The 64-bit number of a low and a high word."""
    return low | high << 32


def proxy_rows(state: VirtioState) -> list[tuple[Any, ...]]:
    """What the driver wrote into the transport's queue registers; nothing for an untouched queue."""
    rows = []
    for q in state.queues:
        touched = q.enabled or q.desc or q.avail or q.used or q.num != q.num_default
        areas = (*split_words(q.desc), *split_words(q.avail), *split_words(q.used))
        rows.append((q.num if touched else 0, q.enabled, *areas))
    return rows


def merge_proxy(src: VmReader, state: VirtioState, rows: list[tuple[Any, ...]]) -> None:
    """Combine the registers with the rings: they agree once a queue is enabled, before that they rule."""
    for queue, (num, enabled, *words) in zip(state.queues, rows, strict=True):
        desc, avail, used = (join_words(*words[i : i + 2]) for i in (0, 2, 4))
        if enabled > 1:
            src.refuse("vqs", f"queue enable flag {enabled} is neither 0 nor 1")
        in_use = (num or queue.num, desc, avail, used)  # a driver may leave the size as it is
        if enabled and in_use != (queue.num, queue.desc, queue.avail, queue.used):
            src.refuse("vqs", "the queue registers disagree with the ring in use")
        queue.enabled, queue.num = enabled, num or queue.num
        queue.desc, queue.avail, queue.used = desc, avail, used


def merge_features(src: VmReader, state: VirtioState, written: int) -> None:
    """Combine what the driver wrote with what the device took: they agree from FEATURES_OK on."""
    if state.status & _FEATURES_OK and written != state.guest_features:
        src.refuse("guest_features", f"{written:#x} was written but {state.guest_features:#x} accepted")
    state.guest_features = written


MMIO: Final = MmioTransport()


def virtio_save(out: VmWriter, state: VirtioState, transport: TransportState = MMIO) -> None:
    """Write ``state`` as QEMU's virtio_save does (wrap it into ``out.opaque("virtio", "virtio")``)."""
    transport.save_config(out, state)
    head = HEAD.pack(
        state.status, state.isr, state.queue_sel, state.guest_features & 0xFFFFFFFF, len(state.config)
    )
    out.buffer("head", head)
    out.buffer("config", state.config)
    out.be32("queues", len(state.queues))
    for index, queue in enumerate(state.queues):
        transport.save_queue(out, index, queue)
    for row in SUBSECTIONS:
        if row.needed(state):
            with out.subsection(row.name, 1):
                row.save(out, state, transport)


def virtio_load(
    src: VmReader, transport: TransportState = MMIO, into: VirtioState | None = None
) -> VirtioState:
    """Read what :func:`virtio_save` wrote; StreamError naming the field if it is not that.

    ``host_features`` is not in a stream: the result has what the stream proves (accepted features, VERSION_1
    and RING_PACKED by their subsections). Whether the device can do what the driver accepted is for the
    device to check. ``into`` is filled in instead: it keeps what came before an error.
    """
    state = into or VirtioState(started=False)
    transport.load_config(src, state)
    head = HEAD.unpack(src.buffer("head", HEAD.size))
    state.status, state.isr, state.queue_sel = head.status, head.isr, head.queue_sel
    state.guest_features = head.guest_features_low
    if head.queue_sel >= VIRTIO_QUEUE_MAX:
        src.refuse("queue_sel", f"{head.queue_sel} is not below {VIRTIO_QUEUE_MAX}")
    if head.config_len > CONFIG_MAX:
        src.refuse("config_len", f"{head.config_len} is more than {CONFIG_MAX}")
    state.config = src.buffer("config", head.config_len)
    count = src.be32("queues")
    if count > VIRTIO_QUEUE_MAX:
        src.refuse("queues", f"{count} virtqueues; at most {VIRTIO_QUEUE_MAX}")
    for index in range(count):
        queue = transport.load_queue(src)
        if not queue.desc and queue.last_avail_idx:
            bad = f"VQ {index} address 0x0 inconsistent with Host index {queue.last_avail_idx:#x}"
            src.refuse("desc", bad)
        state.queues.append(queue)
    for name, _ in src.subsections("virtio", _VERSIONS):
        _ROWS[name].load(src, state, transport)
    state.host_features |= state.guest_features
    return state
