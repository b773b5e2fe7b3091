"""Nodes in groups: the same state in another form, and what is known beforehand decides nothing."""

from __future__ import annotations

import msgspec
import pytest

from vmsim.errors import StreamError
from vmsim.guest.kernel import node_groups
from vmsim.guest.state import Attr, Node
from vmsim.limits import EARLY_STATE_MAX

DIRECTORY, FILE = 0o040755, 0o100644


def node(nodeid, mode=FILE, parent=0, **other):
    attr = Attr(nodeid, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
    return Node(nodeid, 0, attr, refs=1, parent=parent, **other)


def some(*ids):
    return {1: node(1, DIRECTORY, 1)} | {each: node(each) for each in ids}


def test_all_nodes_come_back_and_a_change_touches_its_group_alone():
    nodes = some(*range(2, 2000), 70_000, 1 << 60)
    before = list(node_groups.encoded(nodes))
    assert node_groups.merged(map(node_groups.decoded, before)).nodes == nodes
    nodes[600].nlookup += 1
    del nodes[1300]
    nodes[70_001] = node(70_001)
    after = list(node_groups.encoded(nodes))
    assert len(set(before) ^ set(after)) == 2 * 3


def test_nodes_that_go_while_they_are_encoded_are_left_out():
    nodes = some(*range(2, 600))
    encoding = node_groups.encoded(nodes)
    parts = [next(encoding)]
    for gone in (300, 301, 599):
        del nodes[gone]
    parts += encoding
    assert node_groups.merged(map(node_groups.decoded, parts)).nodes == nodes


def test_what_is_known_is_not_decoded_again_and_given_out_once(monkeypatch):
    data = list(node_groups.encoded(some(*range(2, 600))))
    known = node_groups.Known()
    for each in data:
        known.add(each)
    calls = []
    real = node_groups.decoded
    monkeypatch.setattr(node_groups, "decoded", lambda group: calls.append(group) or real(group))
    first = [known.take(each) for each in data]
    assert calls == []
    again = [known.take(each) for each in data]
    assert calls == data
    assert node_groups.merged(first).nodes == node_groups.merged(again).nodes
    assert first[0].nodes[2] is not again[0].nodes[2]


def test_known_state_is_bounded():
    known = node_groups.Known()
    known._room = 100
    known.add(msgspec.msgpack.encode([node(2)]))
    big = msgspec.msgpack.encode([node(each) for each in range(3, 100)])
    known.add(big)
    assert known._groups.keys() == {msgspec.msgpack.encode([node(2)])}
    assert node_groups.Known()._room == EARLY_STATE_MAX


@pytest.mark.parametrize("wrong", [
    node(0), node(2, nlookup=-1), node(2, name=b"a/b"), node(2, error=5000), node(2, acl=bytes(1 << 20)),
    node(2, mode=-1), node(2, mode=1 << 32),
])  # fmt: skip
def test_impossible_nodes_are_refused_early_as_late(wrong):
    with pytest.raises(StreamError):
        node_groups.Known().add(msgspec.msgpack.encode([wrong]))


@pytest.mark.parametrize("damaged", [b"", b"\xc0", b"\x91\x90", b"\x91\xc0", b"\xdd\xff\xff\xff\xff"])
def test_malformed_groups_are_refused(damaged):
    with pytest.raises(StreamError):
        node_groups.decoded(damaged)


def test_groups_must_fit_together():
    root = msgspec.msgpack.encode([node(1, DIRECTORY, 1)])
    child = msgspec.msgpack.encode([node(5, DIRECTORY, 3)])
    with pytest.raises(StreamError, match="parent 3 is no known directory"):
        node_groups.merged(map(node_groups.decoded, (root, child)))
    with pytest.raises(StreamError, match="twice"):
        node_groups.merged(map(node_groups.decoded, (root, root)))
    no_directory = msgspec.msgpack.encode([node(3)])
    with pytest.raises(StreamError, match="no known directory"):
        node_groups.merged(map(node_groups.decoded, (root, no_directory, child)))
