"""The wheel and the source archive: what they hold, and that they work where no checkout is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index"]

pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110,
        check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder, source=ROOT):
    """A wheel of a source tree."""
    run(*PIP, "wheel", "--quiet", *OFFLINE, "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    script = "import sys, vmsim_backend; print(vmsim_backend.build_sdist(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "wheel")}
    run(sys.executable, "-c", script, folder, cwd=folder, env=environment)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """Where the wheel of the source archive is installed, alone."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = built(folder, sdist)
    place = folder / "site"
    run(*PIP, "install", "--quiet", "--no-compile", *OFFLINE, "--target", place, wheel)
    return place


def python(installed, *words, **options):
    """The environment's packages, with the installed wheel before this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return run(sys.executable, "-P", *words, env=environment, cwd=installed.parent, **options)


def test_the_wheel_claims_no_general_name(installed):
    (wheel,) = installed.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.partition("/")[0] for name in names}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"vmsim", "vmsim_devices"}
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        text = archive.read(points).decode()
    assert {"vmsim/py.typed", "vmsim_devices/py.typed"} <= set(names)
    assert "virtio-fs = vmsim_devices.virtio_fs:DEVICE" in text
    assert "[pytest11]" in text
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vmsim").rglob("*.py")}
    code |= {"vmsim_" + path.relative_to(ROOT).as_posix() for path in (ROOT / "devices").rglob("*.py")}
    assert code <= set(names)


def test_it_runs_where_no_checkout_is(installed, tmp_path):
    where = "import vmsim, vmsim_devices; print(vmsim.__file__, vmsim_devices.__file__)"
    assert all(Path(path).is_relative_to(installed) for path in python(installed, "-c", where).split())
    job = ("migrate", "--json", "--transport", "vhost-user", tmp_path)
    facts = json.loads(python(installed, "-m", "vmsim.cli", *job))
    assert facts["ok"]
    assert facts["discrepancies"] == []


def test_the_documentation_comes_along(installed):
    pages = json.loads(python(installed, "-m", "vmsim.cli", "docs", "--json"))["pages"]
    own = ROOT / "vmsim"
    here = {path.parent.relative_to(own).as_posix() for path in own.rglob("README.md")}
    assert {"start", "virtio_fs", "virtio_fs/state", *here - {"."}} <= set(pages)
    assert pages["start"].strip() == (ROOT / "README.md").read_text().strip()
    assert pages["migration"] == (ROOT / "vmsim" / "migration" / "README.md").read_text()


def test_pytest_finds_the_plugin_by_itself(installed):
    said = python(installed, "-m", "pytest", "--help", "-p", "no:cacheprovider")
    assert "--vhost-user-start" in said


def test_the_source_archive_is_the_tree(sdist):
    def files(top):
        kept = [*sorted(set(os.listdir(top)) & {"vmsim", "devices", "guest_images", "tests", "tools", ".ci"})]
        found = {path for name in kept for path in (top / name).rglob("*") if path.is_file()}
        pages = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
        found |= {top / name for name in ("pyproject.toml", *pages, "LICENSE")}
        ignored = re.compile(r"__pycache__|\.pyc$|\.egg-info|_cache/")
        return {name for path in found if not ignored.search(name := path.relative_to(top).as_posix())}

    assert files(sdist) == files(ROOT)
    for tool in ("tools/vmsim", "tools/test", "tools/peers", ".ci/run"):
        assert os.access(sdist / tool, os.X_OK) == os.access(ROOT / tool, os.X_OK), tool


def test_the_source_archive_tests_itself(sdist):
    # It is the tree (see above): a few are enough, of the code, of the tree, with rigs and processes.
    tests = ["tests/unit/wire", "tests/unit/test_house.py", "tests/unit/machine/test_processes.py"]
    few = "hexdump or top_level or linter or by_address"
    said = run(sys.executable, "-m", "pytest", "-q", "-k", few, *tests, cwd=sdist)
    assert re.search(r"\b\d\d passed", said), said
