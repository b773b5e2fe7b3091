"""How the back-end's state is transferred: one module per protocol, chosen by configuration."""

from __future__ import annotations

from vmsim.errors import UsageError
from vmsim.vhost.dialects.base import BackendTransfer, Dialect, StateLink, StateTransferError
from vmsim.vhost.dialects.rfc2023 import Rfc2023
from vmsim.vhost.dialects.upstream import Upstream

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Upstream(), Rfc2023())}

__all__ = ["DIALECTS", "BackendTransfer", "Dialect", "StateLink", "StateTransferError", "dialect_by_name"]


def dialect_by_name(name: str) -> Dialect:
    """The dialect of that name; UsageError lists those that exist."""
    try:
        return DIALECTS[name]
    except KeyError:
        raise UsageError(f"no dialect {name!r}", hint=f"one of: {', '.join(DIALECTS)}") from None
