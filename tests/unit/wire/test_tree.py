"""Trees of named values, and findings about them."""

from __future__ import annotations

import pytest

from vmsim.wire.tree import Finding, Node, Piece, Severity


def tree() -> Node:
    root = Node("root", offset=0, size=30)
    group = root.add("group", None, "", 10, 8)
    group.add("a", 1, "one", 10, 4)
    group.add("b", [2, 3], "", 14, 4)
    root.add("plain", "text")
    group.pieces = [Piece("head", 10, 2)]
    return root


def test_by_path():
    root = tree()
    assert root.get("group", "a").value == 1
    assert root.find("group", "none") is None
    assert root.find("group", "a", "below") is None
    with pytest.raises(KeyError, match="none"):
        root.get("none", "a")


def test_parents_come_first():
    assert [node.key for node in tree().walk()] == ["root", "group", "a", "b", "plain"]


def test_walking_a_deep_tree():
    root = node = Node("0")
    for depth in range(1, 50_000):
        node = node.add(str(depth))
    assert sum(1 for _ in root.walk()) == 50_000


def test_plain_data():
    assert tree().facts() == {
        "@offset": 0, "@size": 30, "plain": "text",
        "group": {"@offset": 10, "@size": 8, "a": 1, "b": [2, 3]},
    }  # fmt: skip
    assert Node("x").facts() is None
    valued = Node("x", 5)
    valued.add("y", 6)
    assert valued.facts() == {"@value": 5, "y": 6}


def test_moved_into_a_file_where_it_lies_in_two_parts():
    """Its first twelve bytes are at 100, the others at 200: what spans the gap includes it."""
    root = tree().moved(lambda at: 100 + at if at < 12 else 188 + at)
    assert (root.offset, root.size) == (100, 118)
    group = root.get("group")
    assert (group.offset, group.size) == (110, 96)
    assert (group.get("b").offset, group.get("b").size) == (202, 4)
    assert (group.pieces[0].offset, group.pieces[0].size) == (110, 90)
    assert root.get("plain").offset == -1


def test_equal_keys_are_numbered():
    root = Node("root")
    for key in ("x", "y", "x", "x"):
        root.add(key)
    assert [child.key for child in root.distinct().children] == ["x", "y", "x#2", "x#3"]
    for key in ("x#2", "x"):
        root.add(key)
    assert [child.key for child in root.distinct().children] == ["x", "y", "x#2", "x#3", "x#2#2", "x#4"]


def test_findings():
    finding = Finding(Severity.ERROR, "code", "what", "field", 7, "do")
    assert finding.facts() == {
        "severity": "error", "code": "code", "field": "field", "offset": 7, "message": "what", "hint": "do",
    }  # fmt: skip
    assert Finding(Severity.NOTE, "code", "what").facts()["offset"] is None
    assert Severity.NOTE < Severity.WARNING < Severity.ERROR
