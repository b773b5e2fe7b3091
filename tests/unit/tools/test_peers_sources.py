"""tools/peers finds the mirror in every form in which apt is configured."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parents[3] / "tools" / "peers"


@pytest.fixture(scope="module")
def peers():
    loader = importlib.machinery.SourceFileLoader("tools_peers", str(PEERS))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("tools_peers", loader))
    loader.exec_module(module)
    return module


SOURCES = """# a comment
Types: deb
# another
URIs: http://mirror.example/debian
Suites: stable stable-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: stable-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def configure(tmp_path, name, text):
    (tmp_path / "sources.list.d").mkdir(exist_ok=True)
    path = tmp_path / name
    path.write_text(text)
    return tmp_path


def test_deb822(peers, tmp_path):
    entry = peers.debian_archive(configure(tmp_path, "sources.list.d/debian.sources", SOURCES))
    assert entry["uris"] == "http://mirror.example/debian"
    assert entry["signed-by"].endswith("keyring.gpg")
    assert "abc" in peers.deb822_entries(SOURCES)[1]["signed-by"]


@pytest.mark.parametrize(
    ("line", "uri", "key"),
    [
        ("deb http://mirror.example/debian stable main", "http://mirror.example/debian", None),
        ("deb [arch=amd64 signed-by=/k.gpg] mirror+file:/etc/m/debian.list stable main non-free # x",
         "mirror+file:/etc/m/debian.list", "/k.gpg"),
    ],
)
def test_one_line(peers, tmp_path, line, uri, key):
    text = f"# deb http://old.example/debian stable main\ndeb http://s.example stable-security main\n{line}\n"
    entry = peers.debian_archive(configure(tmp_path, "sources.list", text))
    assert entry["uris"] == uri
    assert entry.get("signed-by") == key


@pytest.mark.parametrize("suites", [
    "trixie", "bookworm bookworm-updates", "forky", "sid", "testing", "stable-20260101", "bullseye-backports",
])  # fmt: skip
def test_the_suite_need_not_be_the_machines(peers, tmp_path, suites):
    """os-release may name another release than apt's sources, or none that is known yet."""
    configure(tmp_path, "sources.list.d/debian.sources", SOURCES.replace("stable stable-updates", suites))
    assert peers.debian_archive(tmp_path)["uris"] == "http://mirror.example/debian"


def test_the_likeliest_comes_first_and_the_others_are_tried_as_well(peers, tmp_path):
    configure(tmp_path, "sources.list", "deb http://tool.example/debian stable main\n"
              "deb http://cloud.example/apt cloud-sdk-bookworm main\n"
              "deb http://plain.example/x trixie main\n")
    configure(tmp_path, "sources.list.d/debian.sources", SOURCES)
    found = [entry["uris"] for entry in peers.debian_archives(tmp_path)]
    assert found == ["http://mirror.example/debian", "http://tool.example/debian", "http://plain.example/x"]


def test_disabled_and_foreign_entries_do_not_count(peers, tmp_path):
    off = SOURCES.replace("Types: deb\n#", "Types: deb\nEnabled: no\n#", 1)
    configure(tmp_path, "sources.list.d/debian.sources", off)
    configure(tmp_path, "sources.list.d/other.list.disabled", "deb http://x.example/debian stable main")
    with pytest.raises(peers.PeersError, match="names no Debian archive"):
        peers.debian_archive(tmp_path)


def test_folder(peers, monkeypatch, tmp_path):
    monkeypatch.setenv("VMSIM_PEERS", str(tmp_path / "here"))
    assert peers.folder() == tmp_path / "here"
    monkeypatch.delenv("VMSIM_PEERS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert peers.folder() == tmp_path / "vmsim" / "peers"
