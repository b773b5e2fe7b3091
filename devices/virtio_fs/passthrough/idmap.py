"""Translation of user or group ids between guest and host: --translate-uid, --translate-gid.

=============================================  ==================================================
``guest:<guest base>:<host base>:<count>``     guest ids become host ids, one to one
``host:<host base>:<guest base>:<count>``      host ids become guest ids, one to one
``map:<guest base>:<host base>:<count>``       both of them
``squash-guest:<guest base>:<host id>:<n>``    n guest ids become one host id
``squash-host:<host base>:<guest id>:<n>``     n host ids become one guest id
``forbid-guest:<guest base>:<count>``          requests with these guest ids fail with EPERM
=============================================  ==================================================

An id that no rule names stays what it is. Ranges of one direction must not overlap.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from vmsim.errors import UsageError

ID_COUNT: Final = 1 << 32


class IdRange(NamedTuple):
    """``length`` ids from ``base`` become ``target`` (+ their distance, with ``step`` 1); -1: forbidden."""

    base: int
    length: int
    target: int
    step: int


class IdMap:
    """Both directions of one translation; ``identity`` is true when it changes nothing."""

    __slots__ = ("_to_guest", "_to_host", "identity")

    def __init__(self, rules: Iterable[str] = ()) -> None:
        to_host: list[IdRange] = []
        to_guest: list[IdRange] = []
        for rule in rules:
            _add_rule(rule, to_host, to_guest)
        self._to_host = _Ranges(to_host)
        self._to_guest = _Ranges(to_guest)
        self.identity = not to_host and not to_guest

    def to_host(self, guest_id: int) -> int:
        """The host's id; EPERM for a forbidden one."""
        return self._to_host.translate(guest_id)

    def to_guest(self, host_id: int) -> int:
        """The guest's id."""
        return self._to_guest.translate(host_id)


class _Ranges:
    __slots__ = ("_bases", "_ranges")

    def __init__(self, ranges: list[IdRange]) -> None:
        self._ranges = sorted(ranges)
        self._bases = [item.base for item in self._ranges]
        for before, after in zip(self._ranges, self._ranges[1:], strict=False):
            if before.base + before.length > after.base:
                raise UsageError(
                    f"id ranges overlap: {before.base}+{before.length} and {after.base}+{after.length}",
                    hint="every id may be named once per direction; the last field of a rule is a count",
                )

    def translate(self, number: int) -> int:
        at = bisect_right(self._bases, number) - 1
        if at < 0:
            return number
        base, count, target, step = self._ranges[at]
        if number >= base + count:
            return number
        if target < 0:
            raise OSError(errno.EPERM, "this guest id is forbidden")
        return target + (number - base) * step


def _add_rule(rule: str, to_host: list[IdRange], to_guest: list[IdRange]) -> None:
    kind, *fields = rule.split(":")
    try:
        numbers = [int(field) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != (2 if kind == "forbid-guest" else 3) or min(numbers) < 0:
        raise UsageError(f"bad id translation {rule!r}", hint="<type>:<source base>:<target base>:<count>")
    base, count = numbers[0], numbers[-1]
    target = numbers[1] if len(numbers) == 3 else -1
    step = 0 if kind.startswith("squash-") else 1
    last_target = target + (count - 1) * step if len(numbers) == 3 else 0
    if base + count > ID_COUNT or last_target >= ID_COUNT:
        raise UsageError(f"id translation {rule!r} leaves the range of 32-bit ids")
    if kind in ("guest", "squash-guest", "forbid-guest", "map"):
        to_host.append(IdRange(base, count, target, step))
    if kind in ("host", "squash-host"):
        to_guest.append(IdRange(base, count, target, step))
    elif kind == "map":
        to_guest.append(IdRange(target, count, base, step))
    elif kind not in ("guest", "squash-guest", "forbid-guest"):
        raise UsageError(f"no id translation {kind!r}", hint="guest, host, map, squash-… or forbid-guest")
