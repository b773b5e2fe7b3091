"""All cases: one module per group, or per part of a large one."""

from __future__ import annotations

from vmsim.check.case import Case
from vmsim.check.cases import hostile_fuse, messages

MODULES = (messages, hostile_fuse)
GROUPS = tuple(dict.fromkeys(module.CASES.name for module in MODULES))
CASES: tuple[Case, ...] = tuple(
    case for name in GROUPS for module in MODULES if module.CASES.name == name for case in module.CASES.cases
)
"""In the order in which they run."""
