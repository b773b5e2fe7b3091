"""All system calls of a passthrough file server in one object."""

from __future__ import annotations

from vmsim.host.fs.attributes import LinuxAttributes
from vmsim.host.fs.contents import LinuxContents
from vmsim.host.fs.credentials import LinuxCredentials
from vmsim.host.fs.names import LinuxNames
from vmsim.host.fs.reaching import LinuxReaching


class LinuxFs(LinuxReaching, LinuxNames, LinuxContents):
    """Implements ``HostFs`` of ``devices/virtio_fs/passthrough/host_calls.py`` with the system's own calls.

    It owns no descriptor. Its buffers are its own, so one object serves one thread. ``proc`` is where this
    process finds itself in a /proc file system: elsewhere in a sandbox, see :mod:`vmsim.host.sandbox`. So is
    ``share_clone`` a mount of the share that was made when we still might (-1: none).
    """

    def __init__(self, proc: bytes = b"/proc/self", share_clone: int = -1) -> None:
        self._proc = proc
        self._share_clone = share_clone
        self._link = proc + b"/fd/%d"
        LinuxReaching.__init__(self)
        LinuxAttributes.__init__(self)
        LinuxNames.__init__(self)
        LinuxCredentials.__init__(self)
