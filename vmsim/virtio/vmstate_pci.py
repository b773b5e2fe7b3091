"""The virtio-pci transport's part of virtio_save, for reading and rewriting streams of real machines."""

from __future__ import annotations

from struct import Struct
from typing import Final

from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.virtio.state import VirtioQueueState, VirtioState
from vmsim.virtio.vmstate import (
    join_words,
    load_table,
    merge_features,
    merge_proxy,
    proxy_rows,
    save_table,
    split_words,
)

PCI_CONFIG_BYTES: Final = 256
PCIE_CONFIG_BYTES: Final = 4096
PCI_VERSION: Final = 2
_CAPABILITIES = 0x34
_CAPABILITY_EXPRESS = 0x10
_CAPABILITY_MSIX = 0x11


def capability(config: bytes, wanted: int) -> int:
    """The offset of a capability in a PCI configuration space; 0 if there is none."""
    seen = set()
    at = config[_CAPABILITIES]
    while 0x40 <= at < PCI_CONFIG_BYTES - 1 and at not in seen:
        if config[at] == wanted:
            return at
        seen.add(at)
        at = config[at + 1]
    return 0


def msix_vectors(config: bytes) -> int:
    """How many MSI-X vectors the function has; 0 without the capability."""
    at = capability(config, _CAPABILITY_MSIX)
    return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1 if at else 0


class PciTransport:
    """A virtio-pci function: its configuration space, interrupt state, MSI-X table and queue vectors.

    Loading fills it in; saving writes the same bytes again.
    """

    extra_name = "virtio_pci"
    _modern = "virtio_pci/modern_state"
    _queue = Struct(">HxB6I")  # num, padding, enabled, desc, avail, used: low word, high word

    def __init__(self) -> None:
        self.config = b""
        self.irq_state: tuple[int, ...] = (0, 0, 0, 0)
        self.msix_table = b""
        self.msix_pending = b""
        self.config_vector = 0
        self.queue_vectors: list[int] = []
        self.modern = True
        self.default_sizes: set[int] = set()  # queues whose size the driver never wrote: 0 in the registers

    def save_config(self, out: VmWriter, state: VirtioState) -> None:
        """The PCIDevice section and, with MSI-X, its table and the vector of configuration changes."""
        out.be32("version_id", PCI_VERSION)
        out.buffer("config", self.config)
        out.array("i32", "irq_state", self.irq_state)
        if msix_vectors(self.config):
            out.buffer("msix_table", self.msix_table)
            out.buffer("msix_pba", self.msix_pending)
            out.be16("config_vector", self.config_vector)

    def load_config(self, src: VmReader, state: VirtioState) -> None:
        """The PCIDevice section and, with MSI-X, its table and the vector of configuration changes."""
        version = src.be32("version_id")
        if version != PCI_VERSION:
            src.refuse("version_id", f"PCIDevice version {version} is not {PCI_VERSION}")
        self.config = src.buffer("config", PCI_CONFIG_BYTES)
        if capability(self.config, _CAPABILITY_EXPRESS):
            self.config += src.buffer("config", PCIE_CONFIG_BYTES - PCI_CONFIG_BYTES)
        self.irq_state = src.array("i32", "irq_state", 4)
        vectors = msix_vectors(self.config)
        if vectors:
            self.msix_table = src.buffer("msix_table", 16 * vectors)
            self.msix_pending = src.buffer("msix_pba", (vectors + 7) // 8)
            self.config_vector = src.be16("config_vector")

    def save_queue(self, out: VmWriter, index: int, queue: VirtioQueueState) -> None:
        """Size, descriptor area, index and, with MSI-X, the vector."""
        out.be32("num", queue.num)
        out.be64("desc", queue.desc)
        out.be16("last_avail_idx", queue.last_avail_idx)
        if msix_vectors(self.config):
            out.be16("vector", self.queue_vectors[index])

    def load_queue(self, src: VmReader) -> VirtioQueueState:
        """Size, descriptor area, index and, with MSI-X, the vector."""
        num = src.be32("num")
        desc = src.be64("desc")
        index = src.be16("last_avail_idx")
        queue = VirtioQueueState(num=num, num_default=num, desc=desc, last_avail_idx=index)
        if msix_vectors(self.config):
            self.queue_vectors.append(src.be16("vector"))
        return queue

    def save_extra(self, out: VmWriter, state: VirtioState) -> None:
        """``virtio_pci/modern_state``, unless the function is legacy only."""
        if self.modern:
            with out.subsection(self._modern, 1):
                out.be32("dfselect", state.host_features_sel)
                out.be32("gfselect", state.guest_features_sel)
                out.array("be32", "guest_features", split_words(state.guest_features))
                rows = [
                    (0 if index in self.default_sizes else row[0], *row[1:])
                    for index, row in enumerate(proxy_rows(state))
                ]
                save_table(out, "vqs", self._queue, rows)

    def load_extra(self, src: VmReader, state: VirtioState) -> None:
        """``virtio_pci/modern_state``, unless the function is legacy only."""
        self.modern = False
        for _ in src.subsections(self.extra_name, {self._modern: 1}):
            self.modern = True
            state.host_features_sel = src.be32("dfselect")
            state.guest_features_sel = src.be32("gfselect")
            merge_features(src, state, join_words(*src.array("be32", "guest_features", 2)))
            rows = load_table(src, "vqs", self._queue, state)
            self.default_sizes = {index for index, row in enumerate(rows) if not row[0]}
            merge_proxy(src, state, rows)
