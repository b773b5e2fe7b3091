"""What travels backwards, and how both sides agree on who runs.

                 source                                   destination
    state ahead of its time, PING ------------------->    works on it, while the guest runs
                                  <-------------------    PONG: done with it (or SHUT 1 and why)
    stream ... end, description   ------------------->    loads, prepares
                                  <-------------------    SHUT 0: ready (or SHUT 1 and why)
    G: go                         ------------------->
                                  <-------------------    RESUME_ACK: I run
    never runs again

The go is the commit. A destination that has read it runs, whether or not its acknowledgement can be sent; one
that has not never runs. A source that has tried to send it resumes only if the destination says in so many
words that it gave up (SHUT 1). Every other ending, an orderly end of the channel included, leaves it *in
doubt*: stopped, with all that it holds, until somebody who knows settles it. An end proves nothing: a tunnel
between the two (ssh, socat, a port-forward) that is killed closes both of its connections in order.

Backward messages are QEMU's return path: be16 type, be16 length, data. ``G`` is a single byte without NUL, so
that a recorded stream stays readable for QEMU's analyser.
"""

from __future__ import annotations

import errno
import re
from struct import Struct
from typing import Final, NamedTuple

from vmsim.errors import HostError, MigrationError, StreamTruncated
from vmsim.migration.byteio import StreamInput
from vmsim.migration.errors import ChannelError, UnexpectedRecord
from vmsim.migration.report import MigrationInDoubt

SETTLE: Final = (
    "this machine stays stopped: look whether {}, then tell this one: settle(destination_runs=True or False)"
)
"""What to do about a doubt; with what is to be looked for."""
PEER_GONE: Final = frozenset({0, errno.EPIPE, errno.ECONNRESET})
"""How a channel says that the other side closed it; 0 is a channel in memory."""
SHUT: Final = 1
PONG: Final = 2
RESUME_ACK: Final = 6
READY: Final = 0
FAILED: Final = 1
GO: Final = b"G"
REASON_MAX: Final = 4096
ERRNO: Final = re.compile("[0-9]{1,4}", re.ASCII)
RETRIES: Final = 2
"""How often a read in the decisive moments is tried again after an error."""

_HEAD = Struct(">HH")
_VALUE = Struct(">I")


class ReturnMessage(NamedTuple):
    """One message of the return path: a value and, after a failure, where, why and what to do about it."""

    kind: int
    value: int
    step: str = ""
    reason: str = ""
    errno: int = 0
    hint: str = ""


def encode(message: ReturnMessage) -> bytes:
    """The message's bytes."""
    text = b""
    if message.reason:
        hint = " ".join(message.hint.split())
        text = f"{message.step}\n{message.errno}\n{hint}\n{message.reason}".encode()[:REASON_MAX]
    data = _VALUE.pack(message.value) + text
    return _HEAD.pack(message.kind, len(data)) + data


def receive(source: StreamInput) -> ReturnMessage:
    """The next message; StreamTruncated if the other side closes instead, UnexpectedRecord for nonsense."""
    at = source.offset
    kind, size = _HEAD.unpack(peek_surely(source, _HEAD.size))
    if kind not in (SHUT, PONG, RESUME_ACK) or not _VALUE.size <= size <= _VALUE.size + REASON_MAX:
        raise UnexpectedRecord(f"return path message {kind} of {size} bytes", offset=at, field="return path")
    data = peek_surely(source, _HEAD.size + size)[_HEAD.size :]
    source.skip(_HEAD.size + size)
    lines = data[_VALUE.size :].decode("utf-8", "replace").split("\n", 3)
    step, code, hint, reason = (*lines, "", "", "")[:4]
    number = int(code) if ERRNO.fullmatch(code) else 0
    return ReturnMessage(kind, _VALUE.unpack_from(data)[0], step, reason, number, hint)


def begun(source: StreamInput) -> int | None:
    """The kind of the message that has arrived in part, all that ever will; None if it is too little."""
    held = source.held(_HEAD.size)
    return int.from_bytes(held[:2], "big") if len(held) >= 2 else None


def peek_surely(source: StreamInput, size_bytes: int) -> bytes:
    """Peek exactly so many bytes, trying again after an error of the channel.

    StreamTruncated if the other side closed. An end that follows an error proves nothing (what was on its way
    may be lost): then it is that error.
    """
    trouble: ChannelError | HostError | None = None
    for _ in range(RETRIES + 1):
        try:
            data = source.peek(size_bytes)
        except (ChannelError, HostError) as error:
            trouble = error
            if error.errno == errno.ETIMEDOUT:
                break  # whoever was silent for so long has had all the patience there is
            continue
        if len(data) == size_bytes:
            return data
        if trouble is None:
            raise StreamTruncated("the other side closed the channel", offset=source.offset)
        break
    assert trouble is not None
    raise trouble


def left_by_peer(error: BaseException) -> bool:
    """Whether the other side closed the channel: then it may have said why."""
    if isinstance(error, ChannelError):
        return error.errno in PEER_GONE
    return isinstance(error, StreamTruncated)


def refusal(answer: ReturnMessage) -> MigrationError:
    """What the destination says of its failure, as an error of the source."""
    why = f"{answer.step or 'unknown step'}: {answer.reason or 'no reason given'}"
    return MigrationError(
        f"the destination gave up, {why}", step=answer.step, side="destination", errno=answer.errno,
        hint=answer.hint,
    )


def doubt(error: Exception, answers: StreamInput) -> MigrationInDoubt:
    """After the go there is no statement of the destination; ``answers`` is where it would have come."""
    known = ""
    if begun(answers) == RESUME_ACK:
        known = " (the beginning of its acknowledgement arrived: it has run)"
    return MigrationInDoubt(
        f"after the go the destination has not said whether it runs: {error}{known}", step="go",
        side="source", hint=SETTLE.format("the destination runs"),
    )
