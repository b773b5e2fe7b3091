"""The devices that are installed, by name: entry points of the group ``vmsim.devices``."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from vmsim.errors import UsageError
from vmsim.vhost.device_type import DeviceType

ENTRY_POINTS: Final = "vmsim.devices"
DEVICE: Final = "virtio-fs"
"""What a machine has unless another device is named."""


def device_types() -> list[DeviceType]:
    """All kinds of devices that are installed."""
    return [find_device(name) for name in _installed()]


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    """By name; looking them up reads the metadata of every installed package."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


@functools.cache
def find_device(name: str) -> DeviceType:
    """The device of that name; UsageError lists those that are installed."""
    found = _installed()
    if name not in found:
        raise UsageError(f"no device {name!r}", hint=f"installed: {', '.join(sorted(found)) or 'none'}")
    device: DeviceType = found[name].load()
    return device
