"""``vmsim serve``: a vhost-user-fs back-end for real virtual machine monitors."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final

import click

from vmsim.cli.common import Invocation, report_error
from vmsim.cli.compatibility import adapted, virtio_hidden
from vmsim.cli.interrupts import Interrupted
from vmsim.cli.serve_options import LEVELS, device_options, sandbox_of, serve_options
from vmsim.errors import HostError, UsageError
from vmsim.host import sandbox
from vmsim.host.fence import full_fence
from vmsim.host.fs import LinuxFs
from vmsim.host.pidfile import PidFile
from vmsim.host.rlimit import raise_fd_limit, set_fd_limit
from vmsim.host.services import HostServices
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.host.vhost_user.service import Service
from vmsim.host.waits import SPIN_NS, FdWaits
from vmsim.host.workers import Workers
from vmsim.machine.installed import DEVICE, find_device
from vmsim.machine.parts import Seams
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost import constants as c
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.vhost.device_type import DeviceType
from vmsim.vhost.dialects import DIALECTS

CAPABILITIES: Final = {"type": "fs", "features": ["migrate-precopy", "separate-options"]}
"""What QEMU's docs/interop/vhost-user.json asks a back-end program to say of itself."""

Log = Callable[[str, str], None]

PROGRAM: Final = "vmsim-serve"
"""This command as a program of its own (``pyproject.toml``)."""


@click.command()
@serve_options
@click.option("--print-capabilities", is_flag=True, help="Print what we can do, as JSON, and exit.")
@click.option("--print-vhost-user-json", is_flag=True,
              help="Print what belongs into /usr/share/qemu/vhost-user/50-vmsim.json, and exit.")
@click.pass_obj
def serve(
    invocation: Invocation, /, print_capabilities: bool, print_vhost_user_json: bool, **values: Any
) -> int:
    """Serve a directory to a virtual machine monitor over vhost-user: QEMU, cloud-hypervisor, crosvm.

    \b
    vmsim serve --socket-path /tmp/fs.sock --shared-dir /srv/shared
    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem
      -chardev socket,id=fs,path=/tmp/fs.sock -device vhost-user-fs-pci,chardev=fs,tag=shared
    In the guest: mount -t virtiofs shared /mnt
    (guests move between this and virtiofsd; --compatible-with virtiofsd leaves nothing that could prevent it)

    Options are spelled as virtiofsd's. Serves until the front-end goes, or with --reconnect until a signal.
    Exit status: 0 the front-end went, 1 it broke the protocol or we could not serve, 2 wrong usage.
    """
    if print_capabilities or print_vhost_user_json:
        binary = os.path.join(os.path.dirname(sys.executable), PROGRAM)
        own = {"description": "vmsim vhost-user-fs", **CAPABILITIES, "binary": binary}
        print(json.dumps(own if print_vhost_user_json else CAPABILITIES, indent=2))
        return 0
    values = adapted(values)
    # Before the sandbox hides our own program from us; what only --trace needs costs others nothing.
    device = find_device(DEVICE)
    if values["trace"] is not None:
        importlib.import_module("vmsim.cli.tracing")
    _check(values, device)
    _limit_files(values["rlimit_nofile"])
    log = _logger("debug" if values["d"] else values["log_level"])
    if values["thread_pool_size"]:
        log("warn", f"--thread-pool-size {values['thread_pool_size']}: one thread serves everything")
    path, fd = values["socket_path"], values["fd"]
    with ExitStack() as stack:
        outside: list[PidFile | Listener] = []
        if path is not None:
            outside.append(PidFile(f"{path}.pid"))
            stack.callback(outside[0].close)
        listener = Listener.adopt(fd) if path is None else Listener(path, group=values["socket_group"] or "")
        stack.callback(listener.close)
        outside.append(listener)

        def inside(place: sandbox.Confined) -> int:
            return _serve(device, values, place, listener, log)

        def in_a_child(place: sandbox.Confined) -> int:
            for thing in outside:
                thing.disown()
            try:
                return inside(place)
            except BaseException as error:
                return _told(error, invocation)

        return _confined(values, inside, in_a_child, log)


def _check(values: dict[str, Any], device: DeviceType) -> None:
    """UsageError for what cannot be done as asked, before anything has happened."""
    device.check_options(device_options(values))
    sandbox_of(values)
    path, fd, share = values["socket_path"], values["fd"], values["shared_dir"]
    if share is None:
        raise UsageError("which directory?", hint="say --shared-dir DIR")
    if not os.path.isdir(share):
        raise UsageError(f"{share} is not a directory", hint="give the directory to share with the guest")
    if (path is None) == (fd is None):
        raise UsageError("where to serve?", hint="give either --socket-path or --fd")
    if values["socket_group"] and path is None:
        raise UsageError("--socket-group is for --socket-path", hint="whoever made the socket sets its group")


def _told(error: BaseException, invocation: Invocation) -> int:
    """Tell what ended the confined server, and choose its exit status as the whole program does."""
    if isinstance(error, Interrupted):
        return error.status  # the keeper tells
    report_error(error, debug=invocation.debug)
    return 2 if isinstance(error, UsageError) else 1


def _confined(
    values: dict[str, Any], inside: Callable[[sandbox.Confined], int],
    in_a_child: Callable[[sandbox.Confined], int], log: Log,
) -> int:  # fmt: skip
    """Serve in the sandbox that was asked for, or by default in the best that is permitted."""
    wanted = sandbox_of(values)
    if wanted.kind != "none":
        try:
            status = sandbox.run(wanted, in_a_child)
            if status == 128 + signal.SIGBUS:
                log("error", "killed by SIGBUS: the front-end took memory back that it had shared, "
                    "or the system had none left for it")  # fmt: skip
            return status
        except HostError as error:
            if values["sandbox"] is not None or wanted.uid_maps or wanted.gid_maps:
                raise
            log("warn", f"{error}; serving without a sandbox (as with --sandbox none)")
    return sandbox.run(sandbox_of({**values, "sandbox": "none"}), inside)


def _serve(
    device: DeviceType, values: dict[str, Any], place: sandbox.Confined, listener: Listener, log: Log
) -> int:
    """Serve whoever connects; the exit status."""
    with ExitStack() as stack:
        service = _service(stack, device, values, place, log)
        if not listener.listens:
            log("info", f"serving {values['shared_dir']} on descriptor {values['fd']}")
            return 0 if service.serve(UnixSocket.adopt(os.dup(listener.fd))).failure is None else 1
        log("info", f"serving {values['shared_dir']} on {listener.path or f'descriptor {listener.fd}'}")
        return 0 if service.listen(listener, reconnect=values["reconnect"]) is None else 1


def _service(
    stack: ExitStack, device: DeviceType, values: dict[str, Any], place: sandbox.Confined, log: Log
) -> Service:
    """The device behind a vhost back-end behind a loop; ``stack`` closes what has to be closed."""
    pool = Workers(lambda: LinuxFs(place.proc))
    stack.callback(pool.close)
    schedule = ImmediateSchedule(idle=lambda _: service.drain())
    seams = Seams() if values["trace"] is None else _traced(values["trace"], schedule)
    host_fs = LinuxFs(place.proc, place.clone)
    host_fs.drop_groups()
    served = device.backend(
        seams.host_fs(host_fs), place.share, device_options(values),
        request_queues=values["queues"], tag=values["tag"], pool=pool,
    )  # fmt: skip
    stack.callback(served.close)
    served.virtio_features &= ~virtio_hidden(values)
    hidden = c.protocol_bits(c.F_INFLIGHT_SHMFD) if values["no_inflight"] else 0
    options = BackendOptions(
        protocol_features=IMPLEMENTED & ~hidden, policy=values["ring_policy"], log_shared=True,
        keeps_session=values["reconnect"], fence=full_fence,
    )  # fmt: skip
    backend = VhostBackend(
        seams.backend(served), HostServices(), schedule, DIALECTS[values["dialect"]], options
    )
    service = Service(backend, served, FdWaits(spin_ns=SPIN_NS), lambda line: log("info", line), pool)
    service.watch_mounts(place.proc)
    stack.callback(service.close)
    return service


def _traced(patterns: str, schedule: ImmediateSchedule) -> Seams:
    from vmsim.cli.tracing import traced_seams, tracer_for

    return traced_seams(tracer_for(patterns, schedule), "serve")


def _limit_files(wanted: int | None) -> None:
    if wanted:
        set_fd_limit(wanted)
    elif wanted is None:
        raise_fd_limit()


def _logger(level: str) -> Log:
    most = LEVELS.index(level)

    def log(importance: str, line: str) -> None:
        if LEVELS.index(importance) <= most:
            with suppress(OSError):  # whoever read it may be gone: the guest is not
                print(f"[{time.strftime('%H:%M:%S')}] vmsim serve: {line}", file=sys.stderr, flush=True)

    return log
