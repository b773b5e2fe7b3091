"""Declarative vmstate: one row per field, versions, subsections that are there when they are needed.

    TIMER = VmState("timer", version=2, fields=(
        number("ticks", "be64"),
        number("ratio", "be32", since=2),          # not in streams of version 1
        array("slots", "be16", 4),
        buffer("mac", 6),
    ), subsections=(VmState("timer/broken", fields=(number("reason", "u8"),), needed=lambda t: t.broken),))

    TIMER.save(out, timer); TIMER.load(src, timer, version)

The rows drive the bytes in both directions and, through VmWriter, the JSON description. Rows read and set the
attributes of one object. What rows cannot say is written by hand with VmWriter and VmReader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vmsim.migration.errors import UnknownSubsection, VersionTooNew
from vmsim.migration.vmio import NUMBERS, VmReader, VmWriter

__all__ = ["Field", "VmReader", "VmState", "VmWriter", "array", "buffer", "number", "struct"]

Save = Callable[[VmWriter, str, Any], None]
Load = Callable[[VmReader, str, Any], Any]


class Field(NamedTuple):
    """One row: the attribute's name, how its value is written and read, and since which version it exists.

    ``load`` gets the present value and returns the new one. ``check`` says what is wrong with a loaded value.
    """

    name: str
    save: Save
    load: Load
    since: int = 0
    check: Callable[[Any], str | None] | None = None


def number(
    name: str, kind: str, *, since: int = 0, check: Callable[[Any], str | None] | None = None
) -> Field:
    """A number of a kind of NUMBERS (``u8``, ``be16``, ``be32``, ``be64``, ``i32``, ``i64``, ``bool``)."""
    row = NUMBERS[kind]
    if kind == "bool":
        return Field(name, VmWriter.flag, lambda src, field, old: src.flag(field), since, check)
    return Field(
        name, lambda out, field, value: out.number(row.name, field, value),
        lambda src, field, old: src.number(row.name, field), since, check,
    )


def array(name: str, kind: str, count: int, *, since: int = 0) -> Field:
    """A tuple of ``count`` numbers."""
    return Field(
        name, lambda out, field, value: out.array(kind, field, value),
        lambda src, field, old: src.array(kind, field, count), since,
    )


def buffer(name: str, size_bytes: int, *, since: int = 0, type: str = "buffer") -> Field:  # noqa: A002
    """Exactly ``size_bytes`` bytes; shorter values are padded with zeros."""
    return Field(
        name, lambda out, field, value: out.buffer(field, bytes(value).ljust(size_bytes, b"\0"), type=type),
        lambda src, field, old: src.buffer(field, size_bytes), since,
    )


def struct(name: str, state: VmState, *, since: int = 0) -> Field:
    """Another object's fields in place; the object is there already when it is loaded."""

    def save(out: VmWriter, field: str, value: object) -> None:
        with out.struct(field, state.name, state.version):
            state.save(out, value)

    def load(src: VmReader, field: str, value: object) -> object:
        state.load(src, value, state.version)
        return value

    return Field(name, save, load, since)


class VmState:
    """A description: fields in order, then the subsections that are needed.

    ``version`` is written; versions from ``minimum_version`` on are read. A subsection that is not in a
    stream leaves its fields as they are, unless it is ``required``.
    """

    def __init__(
        self, name: str, *, version: int = 1, minimum_version: int | None = None,
        fields: tuple[Field, ...] = (), subsections: tuple[VmState, ...] = (),
        needed: Callable[[Any], bool] = lambda target: True, required: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.minimum_version = version if minimum_version is None else minimum_version
        self.fields = fields
        self.needed = needed
        self.required = required
        self.subsections: Mapping[str, VmState] = {sub.name: sub for sub in subsections}
        for sub in subsections:
            if not sub.name.startswith(name) or len(sub.name) <= len(name):
                raise ValueError(f"subsection {sub.name!r} must begin with {name!r} and be longer")

    def save(self, out: VmWriter, target: object) -> None:
        """Write ``target``'s fields and subsections."""
        for row in self.fields:
            row.save(out, row.name, getattr(target, row.name))
        for sub in self.subsections.values():
            if sub.needed(target):
                with out.subsection(sub.name, sub.version):
                    sub.save(out, target)

    def load(self, src: VmReader, target: object, version: int) -> None:
        """Read a state of ``version`` into ``target``; StreamError naming a field that is refused."""
        self._check_version(src, version)
        for row in self.fields:
            if version < row.since:
                continue
            value = row.load(src, row.name, getattr(target, row.name, None))
            wrong = row.check(value) if row.check is not None else None
            if wrong:
                src.refuse(row.name, wrong)
            setattr(target, row.name, value)
        found = set()
        known = {name: sub.version for name, sub in self.subsections.items()}
        for name, sub_version in src.subsections(self.name, known):
            self.subsections[name].load(src, target, sub_version)
            found.add(name)
        for name, sub in self.subsections.items():
            if sub.required and name not in found:
                raise UnknownSubsection(f"subsection {name!r} is missing", offset=src.offset, field=self.name)

    def _check_version(self, src: VmReader, version: int) -> None:
        if version > self.version:
            message = f"incoming version_id {version} is too new for local version_id {self.version}"
            raise VersionTooNew(message, offset=src.offset, field=self.name)
        if version < self.minimum_version:
            message = f"incoming version_id {version} is too old: at least {self.minimum_version} is read"
            raise VersionTooNew(message, offset=src.offset, field=self.name)
