"""The back-end half of vhost-user as a state machine without I/O."""

from __future__ import annotations

from vmsim.vhost.seams import BackendDevice, BackendIo

__all__ = ["BackendDevice", "BackendIo"]
