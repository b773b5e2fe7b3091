"""All cases: one module per group, or per part of a large one."""

from __future__ import annotations

from vmsim.check.case import Case
from vmsim.check.cases import (
    fuse_content,
    fuse_names,
    hostile_fuse,
    hostile_names,
    hostile_rings,
    killed,
    log,
    memory,
    messages,
    messages_wrong,
    migration,
    migration_defects,
    ring_states,
    rings,
    state_transfer,
)

MODULES = (
    messages, messages_wrong, memory, rings, ring_states, fuse_names, fuse_content, hostile_fuse,
    hostile_rings, hostile_names, log, state_transfer, migration,
    migration_defects, killed,
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(module.CASES.name for module in MODULES))
CASES: tuple[Case, ...] = tuple(
    case for name in GROUPS for module in MODULES if module.CASES.name == name for case in module.CASES.cases
)
"""In the order in which they run."""
