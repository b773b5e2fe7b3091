"""The command line: one module per command, ``program`` around them.

Exit codes: 0 all held; 1 something did not (a discrepancy, a failed or blocked migration, lost output);
2 the command was used wrongly; 130, 143, 129 interrupted (SIGINT, SIGTERM, SIGHUP), after everything
was cleaned up.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vmsim.cli.program import cli, run

__all__ = ["cli", "main", "run", "serve"]

INTERRUPTED: Final = 130


def __getattr__(name: str) -> Any:
    """Import the program when it is asked for."""
    if name not in ("cli", "run"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vmsim.cli import program

    return getattr(program, name)


def main() -> None:
    """Run the command line and exit."""
    try:
        from vmsim.cli.program import main as program
    except KeyboardInterrupt:  # imports take long enough to be interrupted
        print("vmsim: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    program()


def serve() -> None:
    """``vmsim serve`` as a program of its own, as virtual machine managers start back-ends."""
    sys.argv.insert(1, "serve")
    main()
