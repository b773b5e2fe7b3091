"""vmsim: a virtual machine with a complete virtio-fs device and its stateful migration, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmsim.machine import Machine, MachineConfig

__all__ = ["Machine", "MachineConfig"]


def __getattr__(name: str) -> object:
    """Import the machine when it is asked for: the layers below it stay usable alone."""
    if name in __all__:
        from vmsim import machine

        return getattr(machine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
