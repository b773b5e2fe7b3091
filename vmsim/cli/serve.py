"""``vmsim serve``: a vhost-user-fs back-end for real virtual machine monitors."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

import click

from vmsim.cli.common import Invocation
from vmsim.errors import UsageError
from vmsim.host.fence import full_fence
from vmsim.host.fs import LinuxFs
from vmsim.host.services import HostServices
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.host.vhost_user.service import Service
from vmsim.host.waits import SPIN_NS, FdWaits
from vmsim.machine.parts import find_device
from vmsim.sim.immediate import ImmediateSchedule
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.vhost.dialects import DIALECTS


@click.command()
@click.option("--socket-path", metavar="PATH", help="Listen on this Unix socket.")
@click.option("--fd", type=int, default=None, help="Serve on this inherited socket instead.")
@click.option("--shared-dir", required=True, metavar="DIR", help="The directory to share with the guest.")
@click.option("--reconnect", is_flag=True, help="Stay when a front-end goes: the next finds the session.")
@click.option("--dialect", type=click.Choice(sorted(DIALECTS)), default="upstream", show_default=True)
@click.pass_obj
def serve(
    invocation: Invocation, /, socket_path: str | None, fd: int | None, shared_dir: str, reconnect: bool,
    dialect: str, **options: Any,
) -> int:  # fmt: skip
    """Serve DIR to a virtual machine monitor over vhost-user."""
    if (socket_path is None) == (fd is None):
        raise UsageError("where to serve?", hint="give either --socket-path or --fd")
    host = HostServices()
    waits = FdWaits(spin_ns=SPIN_NS)
    schedule = ImmediateSchedule()  # a request that cannot be ended now waits for nobody in this process
    with ExitStack() as stack:
        served = find_device("virtio-fs").backend(LinuxFs(), shared_dir, options)
        stack.callback(served.close)
        backend = VhostBackend(
            served, host, schedule, DIALECTS[dialect],
            BackendOptions(
                protocol_features=IMPLEMENTED, log_shared=True, keeps_session=reconnect, fence=full_fence
            ),
        )
        service = Service(backend, served, waits, _log)
        if fd is not None:
            server = service.serve(UnixSocket.adopt(fd))
            return 0 if server.failure is None else 1
        assert socket_path is not None
        listener = Listener(socket_path)
        stack.callback(listener.close)
        _log(f"serving {shared_dir} on {socket_path}")
        return 0 if service.listen(listener, reconnect=reconnect) is None else 1


def _log(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] vmsim serve: {line}", file=sys.stderr, flush=True)
