"""How many descriptors this process may have."""

from __future__ import annotations

import resource

from vmsim.errors import UsageError


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit from now on.

    What a guest may hold open is derived from it. It belongs to the process, so only a program of our own
    asks for this, never a library.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def set_fd_limit(limit: int) -> None:
    """Let this process have ``limit`` open files; UsageError if it may not have so many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
    except (ValueError, OSError, OverflowError):
        raise UsageError(f"{limit} open files are more than the {hard} that we may have",
                         hint="raise the hard limit first, or ask for fewer") from None
