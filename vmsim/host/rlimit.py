"""How many descriptors this process may have."""

from __future__ import annotations

import resource


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit from now on.

    What a guest may hold open is derived from it. It belongs to the process, so only a program of our own
    asks for this, never a library.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
