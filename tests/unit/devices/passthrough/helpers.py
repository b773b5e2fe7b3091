"""What this process may do."""

from __future__ import annotations

import pytest

from vmsim.host.fs import LinuxFs

PRIVILEGED = LinuxFs().privileged
HANDLES = LinuxFs().handles_allowed()
needs_privilege = pytest.mark.skipif(not PRIVILEGED, reason="needs CAP_SETUID and CAP_SETGID")
