"""The recipes of CONTRIBUTING.md are followed: each diff goes into a copy of the tree, its tests are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREE = ("pyproject.toml", "README.md", "LICENSE", "vmsim", "devices", "tests", "tools")
METADATA = "import vmsim_backend; vmsim_backend.prepare_metadata_for_build_editable('.')"
BEING_WRITTEN = shutil.ignore_patterns("*.pyc.*")
OTHERS = {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
"""Of the environment: the copy's bytecode is of no use afterwards, and goes with it."""
RECIPE = re.compile(
    r"^## (\d\. .*)\n(?:(?!## ).*\n)*?```diff\n((?:.*\n)*?)```\n\n```console\n(.*)\n```$", re.MULTILINE
)
ONE_FAILED = 1
"""pytest's exit status: tests ran, and not all passed."""


class Recipe(NamedTuple):
    """One section: its heading, its diff, the command below it."""

    title: str
    diff: str
    command: str


class Hunk(NamedTuple):
    """A piece of a diff: which file, the how manieth there, its lines before and after."""

    file: str
    number: int
    old: str
    new: str

    @property
    def tests(self) -> bool:
        """Whether it changes tests, and not what they test."""
        return self.file.startswith("tests/")


RECIPES = [Recipe(*found) for found in RECIPE.findall((ROOT / "CONTRIBUTING.md").read_text())]


def hunks(diff: str) -> list[Hunk]:
    """The pieces of a unified diff; what @@ says of lines is ignored."""
    found = []
    _, *parts = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)
    for file, text in zip(parts[::2], parts[1::2], strict=True):
        for number, body in enumerate(re.split(r"^@@.*\n", text, flags=re.MULTILINE)[1:], 1):
            lines = body.splitlines(keepends=True)  # an empty one has lost its space
            old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
            new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
            found.append(Hunk(file, number, old, new))
    return found


def apply(title: str, hunk: Hunk, folder: Path) -> None:
    """Change a file, or make it; the test fails where the old text is not there exactly once."""
    path, place = folder / hunk.file, f"recipe {title!r}, {hunk.file}, hunk {hunk.number}"
    if not hunk.old:
        assert not path.exists(), f"{place}: the file is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(hunk.new)
        return
    assert path.exists(), f"{place}: there is no such file"
    text = path.read_text()
    starts = [found.start() for found in re.finditer(f"^(?={re.escape(hunk.old)})", text, re.MULTILINE)]
    assert len(starts) == 1, f"{place}: this is there {len(starts)} times, not once:\n{hunk.old}"
    path.write_text(text[: starts[0]] + hunk.new + text[starts[0] + len(hunk.old) :])


def run(folder: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """This interpreter in the copy, which comes before whatever is installed."""
    kept = {name: text for name, text in os.environ.items() if name not in OTHERS and "PYTEST" not in name}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=kept | {"PYTHONPATH": str(path or folder)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def run_tests(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """The tests that ``$ tools/test ...`` would run; the copy needs no environment of its own."""
    prompt, tool, *words = shlex.split(command)
    assert (prompt, tool) == ("$", "tools/test")
    return run(folder, "-m", "pytest", "-q", f"--basetemp={folder.parent}/of-recipe", *words)


def told(done: subprocess.CompletedProcess[str]) -> str:
    return f"{shlex.join(done.args)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"


def test_all_recipes_are_found():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert text.count("```diff\n") == text.count("```console\n") == len(RECIPES) == 5
    assert [recipe.title[0] for recipe in RECIPES] == list("12345")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_recipe(recipe, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=BEING_WRITTEN)
        else:
            shutil.copy2(ROOT / name, copy / name)
    changes = hunks(recipe.diff)
    for hunk in changes:
        if hunk.tests:
            apply(recipe.title, hunk, copy)
    without = run_tests(copy, recipe.command)
    assert without.returncode == ONE_FAILED, f"the tests do not need the rest of the diff\n{told(without)}"

    for hunk in changes:
        if not hunk.tests:
            apply(recipe.title, hunk, copy)
    files = {hunk.file for hunk in changes}
    if "pyproject.toml" in files:  # tools/test would install it again, and so its entry points
        made = run(copy, "-c", METADATA, path=copy / "tools" / "wheel")
        assert made.returncode == 0, told(made)
    ruff = run(copy, "-m", "ruff", "check", "--no-cache", *(name for name in files if name.endswith(".py")))
    assert ruff.returncode == 0, told(ruff)
    done = run_tests(copy, recipe.command)
    assert done.returncode == 0, told(done)


DIFF = """--- a/one
+++ b/one
@@ -7,3 +7,3 @@ anywhere
 a
-b
+c

--- /dev/null
+++ b/folder/two
@@ -0,0 +1 @@
+new
"""


def test_a_diff_is_applied_wherever_its_lines_are(tmp_path):
    (tmp_path / "one").write_text("aa\nb\n\na\nb\n\nz\n")
    for hunk in hunks(DIFF):
        apply("0. Try", hunk, tmp_path)
    assert (tmp_path / "one").read_text() == "aa\nb\n\na\nc\n\nz\n"
    assert (tmp_path / "folder" / "two").read_text() == "new\n"


@pytest.mark.parametrize(("text", "count"), [("a\nx\n", 0), ("a\nb\n\na\nb\n\n", 2)])
def test_a_hunk_that_does_not_fit_is_named(tmp_path, text, count):
    (tmp_path / "one").write_text(text)
    with pytest.raises(AssertionError, match=f"'0. Try', one, hunk 1: this is there {count} times, not once"):
        apply("0. Try", hunks(DIFF)[0], tmp_path)
