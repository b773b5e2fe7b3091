"""Somebody in the middle of a vhost-user connection, who notes every message and may change it.

Messages are read by our own framing; descriptors go on with the message that they came with.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from vmsim.errors import VmsimError
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.framing import MessageBuffer
from vmsim.vhost.messages import HEADER

TO_BACKEND: Final = "FE>BE"
TO_FRONTEND: Final = "BE>FE"
MESSAGES: Final = DIALECTS["upstream"].messages
LOOK_MS: Final = 200


class Message(NamedTuple):
    """One message: who to, its name, flags, payload and how many descriptors come with it."""

    towards: str
    name: str
    flags: int
    body: bytes
    fds: tuple[int, ...]

    @property
    def is_request(self) -> bool:
        """Whether it goes to the back-end."""
        return self.towards == TO_BACKEND


CLOSE: Final = Message("", "", 0, b"", ())
"""What a rule returns that wants both connections closed instead."""
Rule = Callable[[Message], Message]


class Mitm:
    """Listens on ``socket``, and passes what the one who connects says on to ``target``, through ``rule``.

    ``trace`` are the messages as they were sent on. A rule returns the message, another one, or CLOSE. It may
    be changed at any time. ``close`` ends it.
    """

    def __init__(self, target: str, rule: Rule = lambda message: message) -> None:
        self.rule = rule
        self.trace: list[Message] = []
        self._folder = tempfile.mkdtemp(prefix="vmsim-mitm-")
        self.socket = f"{self._folder}/socket"
        self._listener = Listener(self.socket)
        self._target = target
        self._end = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mitm", daemon=True)
        self._thread.start()

    def names(self, towards: str = TO_BACKEND) -> list[str]:
        """The names of what went that way."""
        return [message.name for message in self.trace if message.towards == towards]

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._listener.fd, select.POLLIN)
            while not poll.poll(LOOK_MS):
                if self._end.is_set():
                    return
            front = self._listener.accept()
            assert front is not None
            back = UnixSocket.connect(self._target)
            try:
                self._pass_on(front, back)
            finally:
                front.close()
                back.close()
        except BaseException as error:
            self.failure = error

    def _pass_on(self, front: UnixSocket, back: UnixSocket) -> None:
        ways = {
            front.fd: (front, back, MessageBuffer(os.close), TO_BACKEND),
            back.fd: (back, front, MessageBuffer(os.close), TO_FRONTEND),
        }
        poll = select.poll()
        for fd in ways:
            poll.register(fd, select.POLLIN)
        while not self._end.is_set():
            for fd, _ in poll.poll(LOOK_MS):
                source, to, buffer, towards = ways[fd]
                try:
                    if not self._read(source, to, buffer, towards):
                        return
                except VmsimError:
                    return  # either side is gone

    def _read(self, source: UnixSocket, to: UnixSocket, buffer: MessageBuffer, towards: str) -> bool:
        found = source.receive(buffer.needed)
        if found is None:
            return True
        data, fds = found
        if not data:
            return False
        raw = buffer.feed(data, fds)
        if raw is None:
            return True
        row = MESSAGES.by_id.get(raw.header.request)
        name = row.name if row is not None else str(raw.header.request)
        message = self.rule(Message(towards, name, raw.header.flags, raw.body, raw.fds))
        try:
            if message is CLOSE:
                return False
            self.trace.append(message._replace(fds=(-1,) * len(message.fds)))
            self._write(to, HEADER.pack(raw.header.request, message.flags, len(message.body)) + message.body,
                        message.fds)  # fmt: skip
        finally:
            for each in {*raw.fds, *message.fds}:
                os.close(each)
        return True

    @staticmethod
    def _write(to: UnixSocket, data: bytes, fds: tuple[int, ...]) -> None:
        poll = select.poll()
        poll.register(to.fd, select.POLLOUT)
        while data:
            poll.poll(LOOK_MS)
            sent = to.send(data, fds)
            if sent:
                data, fds = data[sent:], ()

    def close(self) -> None:
        """End it; what went wrong in it is raised."""
        self._end.set()
        self._thread.join()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
