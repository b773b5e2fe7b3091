"""Names of extended attributes as the guest sees them and as they are on the host (--xattrmap).

Rules are ``:type:scope:key:prepend:`` (the first character separates), tried in order, the first match wins:

============  ======================================================================================
type          effect
============  ======================================================================================
prefix        guest names that start with ``key`` get ``prepend`` in front of them on the host; host
              names that start with ``prepend`` + ``key`` lose it
ok            the name stays as it is
bad           EPERM for the guest (ENODATA when it reads), not listed
unsupported   ENOTSUP for the guest, not listed
map           ``:map:key:prepend:``, short for prefix + bad both ways + ok; at most one, and last
============  ======================================================================================

``scope``: ``client`` matches the guest's name with ``key``, ``server`` the host's name with ``prepend``,
``all`` does both. A name that no rule matches is refused: the last rule has to match all.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from vmsim.errors import UsageError

TYPES = ("prefix", "ok", "bad", "unsupported")
SCOPES = ("client", "server", "all")
LENGTH_MAX = 16384


class Rule(NamedTuple):
    """One rule; ``client`` and ``server`` say which direction it serves."""

    kind: str
    client: bool
    server: bool
    key: bytes
    prepend: bytes


class XattrMap:
    """A parsed list of rules; UsageError for a bad one. An empty text maps nothing."""

    def __init__(self, text: str = "") -> None:
        self.rules = _parse(text)

    def to_host(self, name: bytes) -> bytes:
        """The host's name for what the guest calls ``name``; OSError EPERM or ENOTSUP."""
        if not self.rules:
            return name
        for rule in self.rules:
            if rule.client and name.startswith(rule.key):
                if rule.kind == "bad":
                    break
                if rule.kind == "unsupported":
                    raise OSError(errno.ENOTSUP, "this attribute is not supported")
                return rule.prepend + name if rule.kind == "prefix" else name
        raise OSError(errno.EPERM, "this attribute is not allowed")

    def to_guest(self, name: bytes) -> bytes | None:
        """What the guest calls the host's ``name``; None hides it."""
        if not self.rules:
            return name
        for rule in self.rules:
            if not rule.server:
                continue
            if rule.kind == "prefix":
                if name.startswith(rule.prepend + rule.key):
                    return name[len(rule.prepend) :]
            elif name.startswith(rule.prepend):
                return name if rule.kind == "ok" else None
        return None


def _parse(text: str) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    rest = text.strip()
    if len(rest) > LENGTH_MAX:
        raise UsageError(f"xattrmap: {len(rest)} characters", hint=f"at most {LENGTH_MAX}")
    mapped = False
    while rest:
        if mapped:
            raise UsageError("xattrmap: 'map' must be the last rule")
        separator = rest[0]
        fields = rest[1:].split(separator)
        kind = fields[0]
        size = 3 if kind == "map" else 4
        if len(fields) <= size:
            raise UsageError(f"xattrmap: rule {rest!r} is incomplete", hint="':type:scope:key:prepend:'")
        rest = separator.join(fields[size:]).strip()
        values = [field.encode() for field in fields[1:size]]
        if kind == "map":
            mapped = True
            rules.extend(_expand_map(values[0], values[1]))
        elif kind in TYPES and fields[1] in SCOPES:
            rules.append(Rule(kind, fields[1] != "server", fields[1] != "client", values[1], values[2]))
        else:
            raise UsageError(f"xattrmap: no rule {kind!r} with scope {fields[1]!r}", hint=f"{TYPES} {SCOPES}")
    return tuple(rules)


def _expand_map(key: bytes, prepend: bytes) -> list[Rule]:
    if not key:
        return [Rule("prefix", True, True, b"", prepend), Rule("bad", True, True, b"", b"")]
    return [
        Rule("prefix", True, True, key, prepend),
        Rule("bad", False, True, b"", key),
        Rule("bad", True, False, prepend, b""),
        Rule("ok", True, True, b"", b""),
    ]
