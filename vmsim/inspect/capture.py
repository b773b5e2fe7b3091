"""What was read from one file: the tree to print, and the parts that lint and comparison look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from vmsim.inspect.ram import Block, Ram
from vmsim.inspect.source import Bytes
from vmsim.machine.config import MachineConfig
from vmsim.vhost.device_type import DeviceInspection
from vmsim.virtio.state import VirtioState
from vmsim.wire.tree import Finding, Node, Severity

STREAM, MAPPED_RAM, MACHINE, STATE = "QEMU migration stream", "QEMU mapped-ram file", "vmsim machine", "state"

PC_LOW_MEMORY: Final = 0x8000_0000
"""Below this a PC's memory lies at its own addresses, whatever its size (q35 splits here at the earliest)."""
PC_MACHINES: Final = ("pc", "microvm", "q35", "isapc")


UNREAD: Final = frozenset(
    {"stream-ends", "section-body", "section-length", "section-open", "bad-footer", "state-truncated",
     "state-ends"}
)  # fmt: skip
"""Errors after which something of the file is not understood."""
SAME_MAX: Final = 200
"""Findings of one kind that are kept of a file; the others are counted."""


@dataclass(slots=True)
class Device:
    """One virtio device: its section, its decoded state as far as it was read, and its back-end's state."""

    idstr: str
    node: Node
    state: VirtioState = field(default_factory=VirtioState)
    complete: bool = False
    version: int = 0
    inspection: DeviceInspection | None = None
    backend: Node | None = None

    @property
    def packed(self) -> bool:
        """Whether the driver accepted packed rings."""
        return bool(self.state.guest_features >> 34 & 1)


@dataclass(slots=True)
class Capture:
    """One file."""

    name: str
    source: Bytes
    kind: str = STREAM
    root: Node = field(default_factory=lambda: Node("file"))
    findings: list[Finding] = field(default_factory=list)
    machine_type: str = ""
    page_size: int = 4096
    ram: Ram = field(default_factory=Ram)
    devices: list[Device] = field(default_factory=list)
    config: MachineConfig | None = None
    state: Node | None = None
    """Of a bare back-end state: its tree."""
    end: int = 0
    """Where decoding ended, in bytes from the beginning."""
    state_nodes: int = 0
    """Values of all back-end states."""
    loads: bool | None = None
    """Whether our loader takes it; None if it was not asked."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each kind of finding was made."""

    def found(
        self,
        severity: Severity,
        code: str,
        message: str,
        *,
        field: str = "",
        offset: int = -1,
        hint: str = "",
    ) -> None:
        """Add a finding."""
        self.add((Finding(severity, code, message, field, offset, hint),))

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings; of one kind only so many are kept."""
        for finding in findings:
            self.counts[finding.code] += 1
            if self.counts[finding.code] <= SAME_MAX:
                self.findings.append(finding)

    def close(self) -> None:
        """Say how many were not kept, and put the worst first."""
        for code, count in self.counts.items():
            if count > SAME_MAX:
                first = next(finding for finding in self.findings if finding.code == code)
                text = f"{count - SAME_MAX} more findings of this kind"
                self.findings.append(Finding(first.severity, code, text, hint=first.hint))
        self.counts.clear()
        self.findings.sort(key=lambda finding: (-finding.severity, finding.offset))

    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity is Severity.ERROR for finding in self.findings)

    def read_whole(self) -> bool:
        """Whether nothing is missing, left over, or beyond what can be decoded."""
        broken = {finding.code for finding in self.findings if finding.severity is Severity.ERROR}
        return self.loads is not False and not broken & UNREAD and self.end >= self.source.size

    def guest_memory(self, gpa: int, size_bytes: int) -> bytes | None:
        """Bytes of guest memory within one page; None where the file does not have them, or nobody can tell.

        The blocks of a vmsim machine are placed by its configuration; of a PC its low memory is known.
        """
        for block, base, size in self._regions():
            if base <= gpa and gpa + size_bytes <= base + size:
                return block.read(self.source, gpa - base, size_bytes)
        return None

    def _regions(self) -> list[tuple[Block, int, int]]:
        blocks = list(self.ram.blocks.values())
        if self.config is not None:
            regions = self.config.memory
            return [(b, gpa, size) for b, (gpa, size) in zip(blocks, regions, strict=False) if b.size == size]
        if not blocks or not self.machine_type.startswith(PC_MACHINES):
            return []
        main = max(blocks, key=lambda block: block.size)
        return [(main, 0, min(main.size, PC_LOW_MEMORY))]
