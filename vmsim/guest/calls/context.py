"""What every call stands on: the one place that waits, requests, descriptors, named errors.

Between a wait and the next look at ``ctx.kernel`` only plain values (ids, numbers, bytes) are kept: the
machine may have migrated, and then ``ctx.kernel`` is another one.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeAlias, TypeVar

from vmsim.errors import StateError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.client import encode_extensions
from vmsim.guest.kernel.kernel import GuestKernel, KernelCell
from vmsim.guest.kernel.requests import NONE
from vmsim.guest.state import DONE, Node, OpenFile, Process, Request, Segments
from vmsim.memory import PAGE_SIZE
from vmsim.schedule import TaskKilled

Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

O_ACCMODE: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
O_PATH: Final = os.O_PATH
FD_MAX: Final = 65536


def fail(number: int) -> NoReturn:
    """Raise the OSError for an errno."""
    raise OSError(number, os.strerror(number))


def encode_path(path: Path) -> bytes:
    """A path as bytes; ValueError for a NUL byte and TypeError for what is no path, as ``os`` raises them."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


def names_file(call: Callable[Concatenate[S, Any, P], R]) -> Callable[Concatenate[S, Any, P], R]:
    """Put the first argument (a path) into the OSErrors of a method."""

    def named(self: S, path: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(self, path, *args, **kwargs)
        except OSError as error:
            if error.filename is None and error.errno is not None and not isinstance(path, int):
                raise OSError(error.errno, error.strerror, path) from None
            raise

    functools.update_wrapper(named, call)
    return named


def names_two_files(
    call: Callable[Concatenate[S, Any, Any, P], R],
) -> Callable[Concatenate[S, Any, Any, P], R]:
    """Put the first two arguments (paths) into the OSErrors of a method."""

    def named(self: S, src: Any, dst: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(self, src, dst, *args, **kwargs)
        except OSError as error:
            if error.filename is None and error.errno is not None:
                raise OSError(error.errno, error.strerror, src, None, dst) from None
            raise

    functools.update_wrapper(named, call)
    return named


class _Held:
    """A user more of an open file description, within a ``with``; one object, since every transfer has it."""

    __slots__ = ("_ctx", "_number")

    def __init__(self, ctx: ProcessContext, file: OpenFile) -> None:
        self._ctx = ctx
        self._number = file.id
        file.refs += 1

    def __enter__(self) -> int:
        return self._number

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        kernel = self._ctx.cell.kernel
        file = kernel.state.files.get(self._number)
        if file is None:
            return
        if file.refs > 1 and not kernel.paused:
            file.refs -= 1
        else:  # a program that was killed, perhaps on a machine that is no more, cannot wait
            self._ctx.put_file(self._number, wait=kind is None or issubclass(kind, Exception))


class _Holding:
    """A reference on an inode that is given back at the end of a ``with``."""

    __slots__ = ("_ctx", "_nodeid")

    def __init__(self, ctx: ProcessContext, nodeid: int) -> None:
        self._ctx = ctx
        self._nodeid = nodeid

    def __enter__(self) -> int:
        return self._nodeid

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ctx.cell.kernel.nodes.drop(self._nodeid)


class ProcessContext:
    """One guest process: what all of its calls are handed, to ask the server and to wait for it."""

    def __init__(self, cell: KernelCell, pid: int) -> None:
        self.cell = cell
        self.pid = pid

    @property
    def kernel(self) -> GuestKernel:
        """The kernel of this process, once it runs: nobody acts on a guest whose state is being saved."""
        kernel = self.cell.kernel
        if not kernel.here[0]:
            kernel.birthplace.refuse()
        return self.running() if kernel.paused else kernel

    @property
    def process(self) -> Process:
        """The process; StateError when it has exited."""
        process = self.kernel.state.processes.get(self.pid)
        if process is None:
            raise StateError(f"guest process {self.pid} does not exist")
        return process

    # Waiting

    def wait_until(self, ready: Callable[[GuestKernel], bool], what: str) -> None:
        """Wait until ``ready`` holds for whichever kernel runs us then. Nothing else in the facade waits.

        A program that is killed while its guest is stopped ends once that runs again, on whichever machine:
        its state may be on the way there already. A second kill does not wait.
        """
        cell = self.cell
        cell.kernel.arm_interrupts()
        cell.waiting += 1
        try:
            cell.kernel.schedule.wait(lambda: not cell.kernel.paused and ready(cell.kernel), what)
        except TaskKilled:
            cell.kernel.schedule.wait(lambda: not cell.kernel.paused, "the machine to run, to end on it")
            raise
        finally:
            cell.waiting -= 1

    def running(self) -> GuestKernel:
        """The kernel, once it runs."""
        kernel = self.cell.kernel
        if not kernel.here[0]:
            kernel.birthplace.refuse()
        if kernel.paused:
            self.wait_until(lambda _: True, "the machine to run")
            kernel = self.cell.kernel
        return kernel

    def call(
        self, opcode: int, nodeid: int, args: Sequence[Any] = (), names: Sequence[bytes] = (),
        data: bytes = b"", *,
        reads: Segments = NONE, writes: Segments = NONE, owned: Segments = NONE, extensions: bytes = b"",
        room: int = 0, compat: bool = False,
    ) -> Request:  # fmt: skip
        """One request from submission to reply; OSError with the server's errno.

        ``owned`` buffers are freed on failure; on success the caller takes the payload out first and then
        calls ``free_owned``.
        """
        kernel = self.cell.kernel
        if kernel.paused or not kernel.here[0]:
            kernel = self.running()
        if len(kernel.state.forgets) >= kernel.config.forget_batch:
            kernel.flush_forgets()
        request = kernel.submit(
            opcode, nodeid, args, names, data, process=kernel.state.processes.get(self.pid), room=room,
            reads=reads, writes=writes, owned=owned, extensions=extensions, compat=compat,
        )  # fmt: skip
        if request.status != DONE:
            request = self.await_reply(request.unique)
        else:
            del kernel.requests[request.unique]
        if request.error:
            self.cell.kernel.free_owned(request)
            raise OSError(request.error, os.strerror(request.error))
        return request

    def ask(self, opcode: int, nodeid: int, args: tuple[Any, ...]) -> bytes:
        """``_call`` for what carries no name and no payload; the reply's bytes."""
        kernel = self.cell.kernel
        state = kernel.state
        process = state.processes.get(self.pid)
        batch = kernel.config.forget_batch
        if kernel.paused or not kernel.here[0] or process is None or len(state.forgets) >= batch:
            return self.call(opcode, nodeid, args).reply
        request = kernel.ask(opcode, nodeid, args, process)
        if request.status != DONE:
            request = self.await_reply(request.unique)
        else:
            del kernel.requests[request.unique]
        if request.error:
            fail(request.error)
        return request.reply

    def await_reply(self, unique: int) -> Request:
        """Wait for one request and take it."""
        try:
            self.wait_until(lambda kernel: kernel.ended(unique), f"FUSE request {unique}")
        except BaseException:
            self.cell.kernel.abandon(unique)
            raise
        request = self.cell.kernel.requests.pop(unique, None)
        return request if request is not None else fail(errno.EIO)

    def record(self, opcode: int, request: Request) -> Any:
        """The typed reply; EIO when it is too short."""
        layout = op.BY_NUMBER[opcode].record
        assert layout is not None
        if len(request.reply) < layout.size:
            fail(errno.EIO)
        return layout.unpack(request.reply)

    def optional(self, opcode: int, nodeid: int, args: Sequence[Any]) -> bool:
        """A request that a server may lack: ENOSYS is remembered and counts as done; whether it was asked."""
        kernel = self.running()
        if opcode in kernel.missing:
            return False
        try:
            self.call(opcode, nodeid, args)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self.kernel.missing.add(opcode)
            return False
        return True

    def require(self, opcode: int, otherwise: int) -> None:
        """Refuse with ``otherwise`` if the server is known not to implement ``opcode``."""
        if opcode in self.running().missing:
            fail(otherwise)

    def lacks(self, opcode: int, error: OSError) -> bool:
        """Whether the error says that the server does not implement ``opcode``, which is then remembered."""
        if error.errno == errno.ENOSYS:
            self.kernel.missing.add(opcode)
            return True
        return False

    # Buffers

    def buffer(self, size: int) -> tuple[int, int]:
        """A payload buffer of up to ``size`` bytes (less when memory is short): (address, bytes)."""
        while True:
            kernel = self.running()
            want = size
            while True:
                gpa = kernel.allocator.allocate(want)
                if gpa is not None:
                    return gpa, want
                if want <= PAGE_SIZE:
                    break
                want = max(PAGE_SIZE, want // 2)
            if not kernel.requests:
                fail(errno.ENOMEM)
            self.wait_until(_memory_free, "guest memory")

    # Descriptors

    def file(self, fd: int) -> OpenFile:
        """The open file description behind a descriptor; EBADF if there is none, ESTALE after recover()."""
        kernel = self.cell.kernel
        if kernel.paused or not kernel.here[0]:
            kernel = self.running()
        process = kernel.state.processes.get(self.pid)
        number = process.fds.get(fd) if process is not None else None
        if number is None:
            fail(errno.EBADF)
        return kernel.state.files[number]

    def usable(self, fd: int) -> OpenFile:
        """A description that has a server-side handle: EBADF for O_PATH."""
        file = self.file(fd)
        if file.fh is None:
            fail(errno.EBADF if file.flags & O_PATH else errno.ESTALE)
        return file

    def new_file(self, nodeid: int, fh: int | None, flags: int, open_flags: int, directory: bool) -> int:
        """A new description with a descriptor; takes over the caller's reference on the node, unless it
        fails: then the server's handle is given back."""
        kernel = self.kernel
        number = kernel.state.next_file
        kernel.state.next_file = number + 1
        file = OpenFile(number, nodeid, fh, flags, open_flags, directory=directory)
        node = kernel.nodes.nodes.get(nodeid)
        file.error = 0 if node is None else node.error  # of a write-out that nobody has heard of yet
        kernel.state.files[number] = file
        try:
            return self.new_fd(number)
        except OSError:
            kernel.nodes.hold(nodeid)
            self.put_file(number)
            raise

    def new_fd(self, number: int, at_least: int = 0) -> int:
        """The lowest free descriptor from ``at_least`` on, now of description ``number``; EMFILE."""
        fds = self.process.fds
        fd = at_least
        while fd in fds:
            fd += 1
        if fd >= FD_MAX:
            fail(errno.EMFILE)
        fds[fd] = number
        return fd

    def held(self, file: OpenFile) -> _Held:
        """Keep a description open while it is in use; yields its number."""
        return _Held(self, file)

    def put_file(self, number: int, wait: bool = True) -> None:
        """One user less; the last one releases the server's handle and the node."""
        kernel = self.running() if wait else self.cell.kernel
        file = kernel.state.files.get(number)
        if file is None:
            return
        file.refs -= 1
        if file.refs > 0:
            return
        del kernel.state.files[number]
        try:
            stateless = (op.OPENDIR if file.directory else op.OPEN) in kernel.missing
            if file.fh is not None and not kernel.state.broken and not stateless:
                self._release(file, wait)
        finally:
            self.cell.kernel.nodes.drop(file.nodeid)

    def _release(self, file: OpenFile, wait: bool) -> None:
        flags, owner = (2, file.id) if file.flocked else (0, 0)  # RELEASE_FLOCK_UNLOCK
        args = (file.fh, file.flags, flags, owner)
        if not wait:
            self.cell.kernel.release(file.nodeid, args, file.directory)
            return
        try:
            self.call(op.RELEASEDIR if file.directory else op.RELEASE, file.nodeid, args)
        except OSError:
            pass  # close(2) ignores it, and so does Linux

    # Nodes

    def holding(self, nodeid: int) -> _Holding:
        """Give back a reference on a node at the end."""
        return _Holding(self, nodeid)

    def node(self, nodeid: int) -> Node:
        """The inode; ESTALE if it is gone."""
        return self.kernel.nodes.get(nodeid)

    def creation(self, parent: int) -> bytes:
        """The extensions of a creating request: labels and one supplementary group, when negotiated."""
        kernel = self.kernel
        flags = kernel.state.session.flags
        security: list[tuple[bytes, bytes]] | None = [] if flags & init_flags.SECURITY_CTX else None
        groups: list[int] = []
        if flags & init_flags.CREATE_SUPP_GROUP:
            group = kernel.nodes.get(parent).attr.gid
            if group in self.process.groups and group != self.process.gid:
                groups = [group]
        return encode_extensions(groups, security) if groups or security is not None else b""


def _memory_free(kernel: GuestKernel) -> bool:
    kernel.poll()
    return kernel.allocator.free_bytes > 0
