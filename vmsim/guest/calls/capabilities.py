"""Capabilities of guest processes, by their numbers (capabilities(7)): those that file systems ask for."""

from __future__ import annotations

from typing import Final

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_LINUX_IMMUTABLE: Final = 9
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_SETFCAP: Final = 31

CAP_LAST: Final = 40
ALL_CAPABILITIES: Final = (1 << CAP_LAST + 1) - 1
"""What user 0 has: one bit for each number."""
