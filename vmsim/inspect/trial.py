"""Our own loader, tried on a vmsim machine: what it refuses is an error, what it takes is none.

Reading along the description shows what is there; whether a destination takes it, only the loader knows.
Streams of other VMMs it does not load at all: of those the findings of reading stay as they are.
"""

from __future__ import annotations

from typing import Final

from vmsim.errors import StreamError, StreamTruncated, VmsimError
from vmsim.inspect.capture import Capture
from vmsim.inspect.source import Bytes
from vmsim.machine.roles import MACHINE_TYPE
from vmsim.machine.trial import try_to_load
from vmsim.migration.channel import ChannelBase
from vmsim.migration.source import MACHINE_IDSTR
from vmsim.wire.tree import Finding, Severity

OWN_SECTIONS: Final = "vmsim/"
REFUSED: Final = "load-fails"
CUT: Final = "the file is cut off, or damaged from there on"


class BytesChannel(ChannelBase):
    """A channel that a file is read from."""

    duplex = False

    def __init__(self, source: Bytes) -> None:
        self._source = source
        self._offset = 0

    def read_some(self, limit: int) -> bytes:
        """The next bytes of the file."""
        data = self._source.read_at(self._offset, limit)
        self._offset += len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nothing is answered to a file."""
        raise NotImplementedError

    def close_write(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """The file belongs to whoever opened it."""


def is_machine(capture: Capture) -> bool:
    """Whether the loader may be asked: a machine of vmsim, or too little of a stream to be anybody's."""
    if capture.config is not None or capture.machine_type == MACHINE_TYPE:
        return True
    sections = capture.root.find("sections")
    if sections is None or not sections.children:
        return not capture.machine_type
    return any(section.key.startswith(OWN_SECTIONS) for section in sections.children)


def load(capture: Capture) -> None:
    """Let the loader have the last word about what is an error in a vmsim machine."""
    try:
        try_to_load(BytesChannel(capture.source))
    except (VmsimError, OSError) as error:
        capture.loads = False
        _refused(capture, error)
        return
    capture.loads = True
    for finding in capture.findings:
        if finding.severity is Severity.ERROR:
            finding.severity = Severity.WARNING


def _refused(capture: Capture, error: VmsimError | OSError) -> None:
    """The loader's refusal, unless reading has found the same."""
    cause = _stream_error(error)
    offset = cause.offset if cause is not None else -1
    known = [one for one in capture.findings if one.severity is Severity.ERROR]
    if any(one.offset == offset or offset < 0 for one in known):
        return
    told: VmsimError | OSError = cause or error
    message = told.message if isinstance(told, VmsimError) else str(told)
    hint = CUT if isinstance(told, StreamTruncated) else getattr(told, "hint", "")
    field = cause.field if cause is not None else MACHINE_IDSTR
    capture.findings.append(
        Finding(Severity.ERROR, REFUSED, f"the load fails: {message}", field, offset, hint)
    )


def _stream_error(error: BaseException) -> StreamError | None:
    """The first refusal of the stream in the chain of causes."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, StreamError):
        seen = seen.__cause__
    return seen
