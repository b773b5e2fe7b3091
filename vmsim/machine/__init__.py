"""Machines: composition of everything below, and nothing else.

The parts are imported when they are first asked for: who only serves a device needs no guest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vmsim.machine.config import MachineConfig
    from vmsim.machine.launch import ArrivalOptions, LaunchOptions
    from vmsim.machine.local_backend import Backend
    from vmsim.machine.machine import Machine
    from vmsim.machine.parts import MachineBackend, Seams
    from vmsim.machine.remote import RemoteBackend

__all__ = [
    "ArrivalOptions", "Backend", "LaunchOptions", "Machine", "MachineBackend", "MachineConfig",
    "RemoteBackend", "Seams",
]  # fmt: skip

WHERE: Final = {
    "ArrivalOptions": "launch", "Backend": "local_backend", "LaunchOptions": "launch", "Machine": "machine",
    "MachineBackend": "parts", "MachineConfig": "config", "RemoteBackend": "remote", "Seams": "parts",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{WHERE[name]}"), name)
