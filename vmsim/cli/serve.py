"""``vmsim serve``: a vhost-user-fs back-end for real virtual machine monitors."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import click

from vmsim.cli.serve_options import LEVELS, device_options, serve_options
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.errors import UsageError
from vmsim.host import sandbox
from vmsim.host.fence import full_fence
from vmsim.host.fs import LinuxFs
from vmsim.host.rlimit import raise_fd_limit
from vmsim.host.services import HostServices
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.host.vhost_user.service import Service
from vmsim.host.waits import SPIN_NS, FdWaits
from vmsim.machine.parts import DeviceType, Seams, find_device
from vmsim.sim.immediate import ImmediateSchedule
from vmsim.vhost import constants as c
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.vhost.dialects import DIALECTS
from vmsim.virtio.constants import F_RING_PACKED

CAPABILITIES: Final = {"type": "fs", "features": ["migrate-precopy", "separate-options"]}
"""What QEMU's docs/interop/vhost-user.json asks a back-end program to say of itself."""

Log = Callable[[str, str], None]


@click.command()
@serve_options
@click.option("--print-capabilities", is_flag=True, help="Print what we can do, as JSON, and exit.")
@click.option("--print-vhost-user-json", is_flag=True,
              help="Print what belongs into /usr/share/qemu/vhost-user/50-vmsim.json, and exit.")
def serve(print_capabilities: bool, print_vhost_user_json: bool, **values: Any) -> int:
    """Serve a directory to a virtual machine monitor over vhost-user: QEMU, cloud-hypervisor, crosvm.

    \b
    vmsim serve --socket-path /tmp/fs.sock --shared-dir /srv/shared
    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem
      -chardev socket,id=fs,path=/tmp/fs.sock -device vhost-user-fs-pci,chardev=fs,tag=shared
    In the guest: mount -t virtiofs shared /mnt

    Options are spelled as virtiofsd's. Serves until the front-end goes, or with --reconnect until a signal.
    Exit status: 0 the front-end went, 1 it broke the protocol or we could not serve, 2 wrong usage.
    """
    if print_capabilities or print_vhost_user_json:
        own = {"description": "vmsim vhost-user-fs", **CAPABILITIES, "binary": os.path.abspath(sys.argv[0])}
        print(json.dumps(own if print_vhost_user_json else CAPABILITIES, indent=2))
        return 0
    path, fd, share = values["socket_path"], values["fd"], values["shared_dir"]
    if share is None:
        raise UsageError("which directory?", hint="say --shared-dir DIR")
    if not os.path.isdir(share):
        raise UsageError(f"{share} is not a directory", hint="give the directory to share with the guest")
    if (path is None) == (fd is None):
        raise UsageError("where to serve?", hint="give either --socket-path or --fd")
    _limit_files(values["rlimit_nofile"])
    device = find_device("virtio-fs")  # before the sandbox hides our own program from us
    log = _logger(values["log_level"])
    with ExitStack() as stack:
        listener = Listener.adopt(fd) if path is None else Listener(path, group=values["socket_group"] or "")
        stack.callback(listener.close)
        proc, root = _confine(values, log)
        service = _service(stack, device, values, root, proc, log)
        log("info", f"serving {share} on {path or f'descriptor {fd}'}")
        if listener.listens:
            failure = service.listen(listener, reconnect=values["reconnect"])
        else:
            failure = service.serve(UnixSocket.adopt(os.dup(listener.fd))).failure
        return 0 if failure is None else 1


def _service(
    stack: ExitStack, device: DeviceType, values: dict[str, Any], root: str, proc: bytes, log: Log
) -> Service:
    """The device behind a vhost back-end behind a loop; ``stack`` closes what has to be closed."""
    schedule = ImmediateSchedule()  # a request that cannot be ended now waits for nobody in this process
    trace = values["trace"]
    seams = Seams() if trace is None else traced_seams(tracer_for(trace, schedule), "serve")
    host_fs = LinuxFs(proc)
    host_fs.drop_groups()
    served = device.backend(
        seams.host_fs(host_fs), root, device_options(values),
        request_queues=values["queues"], tag=values["tag"],
    )  # fmt: skip
    stack.callback(served.close)
    if values["no_packed"]:
        served.virtio_features &= ~F_RING_PACKED
    hidden = c.protocol_bits(c.F_INFLIGHT_SHMFD) if values["no_inflight"] else 0
    options = BackendOptions(
        protocol_features=IMPLEMENTED & ~hidden, policy=values["ring_policy"], log_shared=True,
        keeps_session=values["reconnect"], fence=full_fence,
    )  # fmt: skip
    backend = VhostBackend(
        seams.backend(served), HostServices(), schedule, DIALECTS[values["dialect"]], options
    )
    return Service(backend, served, FdWaits(spin_ns=SPIN_NS), lambda line: log("info", line))


def _confine(values: dict[str, Any], log: Log) -> tuple[bytes, str]:
    """Enter the sandbox; where we find ourselves in /proc afterwards, and where the share is."""
    kind, share = values["sandbox"], os.path.abspath(values["shared_dir"])
    extra = [] if values["inode_file_handles"] == "never" else ["dac_read_search"]
    kept = sandbox.kept_capabilities(values["modcaps"], extra)
    if kind is None:
        kind = "namespace" if sandbox.may_enter_namespaces() else "none"
        if kind == "none":
            log("warn", "the system allows no namespaces: serving without a sandbox (--sandbox none)")
    if kind == "none":
        return b"/proc/self", share
    sandbox.enter(kind, share, kept)
    return sandbox.PROC_HERE, "/"


def _limit_files(wanted: int | None) -> None:
    if wanted == 0:
        return
    hard = raise_fd_limit()
    if wanted is None:
        return
    if wanted > hard:
        raise UsageError(f"--rlimit-nofile {wanted}: we may have {hard}", hint="raise the hard limit first")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _logger(level: str) -> Log:
    most = LEVELS.index(level)

    def log(importance: str, line: str) -> None:
        if LEVELS.index(importance) <= most:
            print(f"[{time.strftime('%H:%M:%S')}] vmsim serve: {line}", file=sys.stderr, flush=True)

    return log
