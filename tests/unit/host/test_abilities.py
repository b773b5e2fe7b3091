"""What ``vmsim doctor`` finds is what the host does."""

from __future__ import annotations

import os
import tempfile

from tests.support.leaks import Held
from vmsim.host.abilities import ABILITIES, Ability, Found, _tried, examine


def test_every_ability_is_tried_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = Held()
    found = examine()
    assert [ability for ability, _ in found] == list(ABILITIES)
    assert all(seen.there for ability, seen in found if ability.required)
    assert all(seen.what for _, seen in found)
    assert os.listdir(tmp_path) == []
    assert before.more() == []


def test_what_it_says_is_what_happens(tmp_path):
    found = {ability.name: seen.there for ability, seen in examine(str(tmp_path))}
    try:
        os.setxattr(tmp_path, "user.test", b"1")
    except OSError:
        assert not found["attributes"]
    else:
        assert found["attributes"]
    assert found["/dev/fuse"] == os.access("/dev/fuse", os.R_OK | os.W_OK)
    assert found["file handles"] == (os.geteuid() == 0 and found["file handles"])


def test_a_probe_that_fails_is_an_ability_that_is_not_there():
    def probe(folder):
        raise PermissionError(1, "no")

    assert _tried(Ability("x", probe, "y"), "/") == Found(False, "[Errno 1] no")
