"""One handler per opcode row, named ``on_`` and the row's name: checks the arguments, calls the file system.

The handler of a *simple* row gets ``(fs, ctx, args)``, all others ``(fs, request)``. They return what the
row's reply says: a tuple for the record, bytes, or the number of bytes that were filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vmsim.fuse.handlers import directories, files, locks, nodes, xattrs

HANDLERS: Final[dict[str, Callable[..., Any]]] = {
    name.removeprefix("on_").upper(): function
    for module in (nodes, files, directories, xattrs, locks)
    for name, function in vars(module).items()
    if name.startswith("on_")
}
"""Handlers by the name of their row."""
