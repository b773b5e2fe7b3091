"""The build back-end (PEP 517): setuptools on a copy of the tree in which ``devices`` has a name of its own.

The checkout's folder is called ``devices``. Installed beside other packages, no name may be as general as
that: wheels have it as ``vmsim_devices``. An editable installation keeps the folder, and so its name. Source
archives hold the whole tree, so that they can be tested and built as a checkout can.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable",
    "get_requires_for_build_sdist", "get_requires_for_build_wheel", "prepare_metadata_for_build_editable",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
FOLDER, INSTALLED = "devices", "vmsim_devices"
IMPORTS = re.compile(rf"^(\s*(?:from|import) ){FOLDER}\b", re.MULTILINE)
ENTRY_POINTS = re.compile(rf'^([\w-]+ = "){FOLDER}\b', re.MULTILINE)
TREE = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "vmsim", "devices",
        "guest_images", "tests", "tools", ".ci", ".gitignore")  # fmt: skip
"""What a source archive holds."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
MANIFEST = "graft vmsim\ngraft devices\ngraft guest_images\ngraft tests\ngraft tools\ngraft .ci\n" \
           "include pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md LICENSE .gitignore\n"


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """The wheel's file name. Its metadata are made with it: those of the tree name the folder."""
    with _copy("pyproject.toml", "README.md", "LICENSE", "vmsim", FOLDER) as place:
        (place / FOLDER).rename(place / INSTALLED)
        _rewrite(place / "pyproject.toml", ENTRY_POINTS)
        for source in (place / INSTALLED).rglob("*.py"):
            _rewrite(source, IMPORTS)
        with _inside(place):
            return build_meta.build_wheel(os.path.abspath(wheel_directory), config_settings)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """The source archive's file name."""
    with _copy(*TREE) as place:
        (place / "MANIFEST.in").write_text(MANIFEST)
        with _inside(place):
            return build_meta.build_sdist(os.path.abspath(sdist_directory), config_settings)


def _rewrite(path: Path, pattern: re.Pattern[str]) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(pattern.sub(rf"\g<1>{INSTALLED}", text), encoding="utf-8")


@contextmanager
def _copy(*names: str) -> Iterator[Path]:
    """A temporary copy of parts of the tree."""
    with tempfile.TemporaryDirectory(prefix="vmsim-build-") as temporary:
        place = Path(temporary)
        for name in names:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, symlinks=True, ignore=LEFT_OUT)
            else:
                shutil.copy2(source, place / name)
        yield place


@contextmanager
def _inside(place: Path) -> Iterator[None]:
    """With ``place`` as the working directory, where setuptools looks; this process only builds."""
    before = os.getcwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
