"""GuestFs: what a guest program calls. Names and semantics are those of Python's ``os``."""

from __future__ import annotations

import msgspec

from vmsim.guest.calls.fileobj import FileObjects


class GuestFs(FileObjects):
    """The calls of one guest process.

    The layers, each a class on top of the next: file objects, requests without waiting, locks, space,
    extended attributes, directories, attributes, content of files, page cache, payload, opening, names, path
    resolution, access, credentials, requests. ``kernel`` is the kernel that runs the process; the machine
    re-points it (for all of its processes) when a migration commits.
    """

    def fork(self) -> GuestFs:
        """A new process with copies of our descriptors, working directory, credentials and umask."""
        kernel = self._running()
        parent = self.process
        pid = max(kernel.state.processes) + 1
        for number in parent.fds.values():
            kernel.state.files[number].refs += 1
        kernel.nodes.hold(parent.cwd)
        kernel.state.processes[pid] = msgspec.structs.replace(
            parent, pid=pid, groups=list(parent.groups), fds=dict(parent.fds)
        )
        return GuestFs(self._cell, pid)

    def exit(self) -> None:
        """End the process: all its descriptors are closed."""
        for fd in list(self.process.fds):
            try:
                self.close(fd)
            except OSError:
                pass  # nobody is left to be told
        kernel = self._running()
        process = kernel.state.processes.pop(self.pid)
        kernel.state.interrupts.pop(self.pid, None)
        kernel.nodes.drop(process.cwd)

    def drop_caches(self) -> None:
        """Write out what is dirty, then drop pages and dentries, and tell the server what we forget."""
        self.sync()
        kernel = self._running()
        if kernel.pages is not None:
            for nodeid in kernel.pages.cached_nodes():
                kernel.pages.drop_clean(nodeid)
        kernel.shrink_dentries()
        kernel.flush_forgets()

    def __repr__(self) -> str:
        return f"GuestFs(pid {self.pid})"
