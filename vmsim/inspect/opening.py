"""Telling what a file is, and reading it."""

from __future__ import annotations

from typing import Final

from vmsim.errors import UsageError
from vmsim.inspect.bodies import STATE_MAX
from vmsim.inspect.capture import STATE, Capture
from vmsim.inspect.lint import lint
from vmsim.inspect.source import Bytes
from vmsim.inspect.stream import read_stream
from vmsim.inspect.trial import is_machine, load
from vmsim.machine.installed import device_types
from vmsim.migration.stream import MAGIC
from vmsim.vhost.device_type import DeviceType

PROBE_BYTES: Final = 1 << 16
STREAM_MAGIC: Final = MAGIC.to_bytes(4, "big")
KINDS: Final = ("auto", "stream", "state")


def read_capture(source: Bytes, name: str, kind: str = "auto", *, loading: bool = False) -> Capture:
    """What is in ``source``, with all findings about it, the worst first.

    ``kind`` is one of KINDS. With ``loading`` our own loader is tried on a machine of ours, which takes the
    memory of its pages meanwhile: an error is what that refuses. UsageError if it is nothing that we know;
    the bytes themselves never raise.
    """
    begin = source.read_at(0, PROBE_BYTES)
    device = next((kind for kind in device_types() if kind.inspection.looks_like_state(begin)), None)
    if kind == "stream" or (kind == "auto" and begin and begin[:4] == STREAM_MAGIC[: len(begin)]):
        capture = read_stream(source, name)
    elif kind == "state" or (device is not None and source.size <= STATE_MAX):
        capture = _read_state(source, name, device or device_types()[0])
    else:
        raise UsageError(
            f"{name} is no migration stream, saved machine or back-end state",
            hint="--as stream or --as state has it read as one all the same"
            if begin
            else "the file is empty",
        )
    lint(capture)
    if loading and capture.state is None and is_machine(capture):
        load(capture)
    capture.close()
    return capture


def _read_state(source: Bytes, name: str, device: DeviceType) -> Capture:
    if source.size > STATE_MAX:
        raise UsageError(f"{name} has {source.size} bytes; a state of at most {STATE_MAX} is taken apart")
    node, findings = device.inspection.state(source.read_at(0, source.size))
    capture = Capture(name, source, f"{device.name} {STATE}", findings=findings, end=source.size)
    capture.root.children.append(node)
    capture.state = node
    return capture
