"""A guest's nodes in groups: the form in which they travel, and what is known of a group once decoded.

A group is the nodes of one range of ids, so that it has the same bytes again as long as nothing in it
changes. What a destination has decoded and checked before the guest stopped (:class:`Known`) need not be
decoded and checked again when the state brings the same bytes. Only the bytes decide: the state is complete
without it.
"""

from __future__ import annotations

import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, NoReturn

import msgspec

from vmsim.errors import StreamError
from vmsim.guest.calls.acl import ACL_BYTES_MAX
from vmsim.guest.state import Node
from vmsim.limits import EARLY_STATE_MAX

RANGE: Final = 256
"""Ids of one group."""
U64_MAX: Final = (1 << 64) - 1
ERRNO_END: Final = 4096
"""Error numbers are smaller (MAX_ERRNO of Linux)."""


class Group(NamedTuple):
    """Checked nodes by id; of the directories among them the ids, and where those lie that have a parent."""

    nodes: dict[int, Node]
    directories: frozenset[int]
    parents: dict[int, int]


def encoded(nodes: dict[int, Node]) -> Iterator[bytes]:
    """All nodes, group by group; those that are gone when their group comes are left out."""
    ids = sorted(nodes)
    start = 0
    while start < len(ids):
        end = bisect_left(ids, (ids[start] // RANGE + 1) * RANGE, start)
        group = list(map(nodes.get, ids[start:end]))
        if None in group:
            group = [node for node in group if node is not None]
        yield msgspec.msgpack.encode(group)
        start = end


def decoded(data: bytes) -> Group:
    """A group that was ``encoded``; StreamError if it is malformed or a node is impossible by itself."""
    try:
        nodes = msgspec.msgpack.decode(data, type=list[Node])
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise StreamError(f"guest state: nodes: {error}", field="nodes") from error
    by_id = {node.id: node for node in nodes}
    if len(by_id) != len(nodes):
        refuse("nodes", "a node comes twice")
    return checked(by_id)


def checked(nodes: dict[int, Node]) -> Group:
    """The group of these nodes; StreamError names the first that is impossible by itself."""
    directories, parents = [], {}
    is_dir = stat.S_ISDIR
    for nodeid, node in nodes.items():
        if nodeid != node.id or not 0 < nodeid <= U64_MAX or node.nlookup < 0 or node.refs < 1:
            refuse(f"nodes[{nodeid}]", "impossible node")
        attr = node.attr
        words = (
            attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, attr.flags,
            attr.atimensec, attr.mtimensec, attr.ctimensec,
        )  # fmt: skip
        if min(words) < 0 or max(words) >> 32 or min(attr.ino, attr.size, attr.blocks) < 0:
            refuse(f"nodes[{nodeid}]", "impossible attributes")
        if len(node.acl) > ACL_BYTES_MAX or node.acl_expiry_ns < 0:
            refuse(f"nodes[{nodeid}]", "impossible ACL")
        if not 0 <= node.error < ERRNO_END:
            refuse(f"nodes[{nodeid}]", "impossible error")
        if b"/" in node.name or b"\0" in node.name:
            refuse(f"nodes[{nodeid}]", "impossible name")
        if is_dir(attr.mode):
            directories.append(nodeid)
        if node.parent:
            parents[nodeid] = node.parent
    return Group(nodes, frozenset(directories), parents)


def merged(groups: Iterable[Group]) -> Group:
    """All nodes of all groups; StreamError if one comes twice, or their directories do not fit together."""
    nodes: dict[int, Node] = {}
    directories: set[int] = set()
    parents: dict[int, int] = {}
    count = 0
    for group in groups:
        nodes.update(group.nodes)
        count += len(group.nodes)
        directories |= group.directories
        parents |= group.parents
    if count != len(nodes):
        refuse("nodes", "a node comes twice")
    if not directories.issuperset(parents.values()):
        nodeid = next(each for each, parent in parents.items() if parent not in directories)
        refuse(f"nodes[{nodeid}]", f"parent {parents[nodeid]} is no known directory")
    return Group(nodes, frozenset(directories), parents)


def refuse(field: str, why: str) -> NoReturn:
    """StreamError about a guest's state."""
    raise StreamError(f"guest state: {why}", field=field)


class Known:
    """Groups that came before the state, by their bytes.

    StreamError for malformed ones. What exceeds EARLY_STATE_MAX is not kept: it will come again.
    """

    def __init__(self) -> None:
        self._groups: dict[bytes, Group] = {}
        self._room = EARLY_STATE_MAX

    def add(self, data: bytes) -> None:
        """One group."""
        if len(data) <= self._room and data not in self._groups:
            self._room -= len(data)
            self._groups[data] = decoded(data)

    def take(self, data: bytes) -> Group:
        """The group with these bytes; its nodes belong to the caller, so nobody gets it twice."""
        return self._groups.pop(data, None) or decoded(data)
