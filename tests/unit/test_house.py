"""The house rules that a machine can check: sizes, layers, docstrings of packages, nothing foreign.

ruff, mypy and import-linter run in ``tools/test``; here the layers are checked once more on the imports
themselves, so that a rule that was taken out of the configuration is missed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("vmsim", "devices")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
TOP_LEVEL = {"devices", "guest_images", "tests", "tools", "vmsim"}

LAYERS = [
    {"cli"}, {"pytest_plugin"}, {"check", "inspect", "workload"}, {"machine"}, {"wrappers", "guest"},
    {"host"}, {"vhost", "fuse"}, {"virtio"}, {"migration"}, {"memory"}, {"wire"}, {"schedule"}, {"trace"},
    {"limits"}, {"errors"},
]
"""Top first; who stands on one line does not import its neighbour."""

HIGH = re.compile(r"vmsim\.(cli|machine|workload|wrappers|guest|host)\b")

SANS_IO = (
    "vmsim/wire", "vmsim/virtio", "vmsim/fuse", "vmsim/vhost", "vmsim/migration", "vmsim/memory", "devices",
)
NO_IO = {
    "_cffi_backend", "asyncio", "cffi", "ctypes", "mmap", "multiprocessing", "ptrace", "random", "secrets",
    "select", "selectors", "socket", "subprocess", "threading", "time",
}
OS_NAMES_ALLOWED = re.compile(
    r"[A-Z][A-Z0-9_]*$|strerror$|fsencode$|fsdecode$|makedev$|major$|minor$|path$|PathLike$|stat_result$"
)
"""Of ``os`` and ``fcntl``: constants and what touches no operating system."""

IMPORT_NAMES = {"cffi": "_cffi_backend", "pyelftools": "elftools", "python-ptrace": "ptrace"}
"""Packages whose modules are called otherwise."""
NATIVE_GUESTS = {"capstone", "pyelftools", "python-ptrace"}
"""What the CPU, decoder and loader of native guests are going to use."""


def python_files(*folders: str) -> list[Path]:
    """Every Python file below the folders; scripts in tools have no suffix."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    if "tools" in folders:
        scripts = [path for path in (ROOT / "tools").iterdir() if path.is_file() and not path.suffix]
        found += [path for path in scripts if path.read_text().startswith("#!/usr/bin/env python3")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """A file's path in the repository."""
    return str(path.relative_to(ROOT))


class Facts(NamedTuple):
    """What rules ask of a file: what it imports, its functions, what it names of modules of the system."""

    imports: frozenset[str]
    functions: tuple[tuple[str, int, int], ...]
    """Name, first line, how many lines."""
    used: tuple[tuple[str, str, int], ...]
    """Module, name in it, line."""


@cache
def facts_of(path: Path) -> Facts:
    """Several rules read the same files. Their trees are not kept: they are millions of objects."""
    imports, functions, used = set(), [], []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append((node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1))
        elif isinstance(node, ast.Attribute) and isinstance(of := node.value, ast.Name):
            used += [(of.id, node.attr, node.lineno)] if of.id in ("os", "fcntl") else []
    return Facts(frozenset(imports), tuple(functions), tuple(used))


def imports_of(path: Path) -> frozenset[str]:
    """The modules that a file names in imports, also inside functions and under TYPE_CHECKING."""
    return facts_of(path).imports


def layer_of(module: str) -> int | None:
    """How far from the top the layer of ``vmsim.x.y`` is."""
    parts = module.split(".")
    if parts[0] != "vmsim" or len(parts) < 2:
        return None
    return next((index for index, names in enumerate(LAYERS) if parts[1] in names), None)


def test_files_are_short():
    files = python_files(*CODE, "tests", "tools")
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_the_reading_path_can_be_read_in_an_afternoon():
    readme = ROOT / "vmsim" / "README.md"
    path = readme.read_text().split("## A reading path")[1]
    files = re.findall(r"^\d+\. \[`.+?`\]\((.+?)\)", path, re.MULTILINE)
    assert len(files) == len(set(files)) == 18
    assert sum(len((readme.parent / file).read_text().splitlines()) for file in files) <= 4_300


def test_functions_are_short():
    long = {}
    for path in python_files(*CODE, "tests", "tools"):
        for name, line, lines in facts_of(path).functions:
            if lines > FUNCTION_LINES_MAX:
                long[f"{name_of(path)}:{line} {name}"] = lines
    assert long == {}


def test_imports_go_downwards_only():
    wrong = []
    for path in python_files("vmsim"):
        module = name_of(path).removesuffix(".py").replace("/", ".")
        mine = layer_of(module)
        for other in sorted(imports_of(path)):
            theirs = layer_of(other)
            same_package = module.split(".")[1] == other.split(".")[1] if "." in other else True
            if mine is not None and theirs is not None and not same_package and theirs <= mine:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_file_imports_itself_by_a_detour():
    """Imports inside functions and for type checking count: whoever reads one file has to read the other."""
    modules = {
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in python_files(*CODE)
    }
    waits_for = {
        module: set(imports_of(path) & modules.keys() - {module}) for module, path in modules.items()
    }
    for module, named in waits_for.items():
        # `from package import module` means the module; the package itself only where a name comes from it.
        named -= {parent for parent in named if any(other.startswith(f"{parent}.") for other in named)}
        named.discard(module)
    assert len(waits_for) > 200
    free = True
    while free:
        free = {module for module, named in waits_for.items() if not named & waits_for.keys()}
        waits_for = {module: named for module, named in waits_for.items() if module not in free}
    assert waits_for == {}, "what is left imports each other, or stands on what does"


def test_every_package_has_a_layer():
    packages = {path.name for path in (ROOT / "vmsim").iterdir() if path.is_dir()}
    assert packages - {"__pycache__"} <= set.union(*LAYERS), "add it to LAYERS and to pyproject.toml"


def test_import_linter_knows_the_same_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    listed = [{name.strip().removeprefix("vmsim.") for name in line.split("|")} for line in layers]
    assert listed == LAYERS


def test_the_simulator_knows_no_device_and_devices_nothing_high():
    for path in python_files("vmsim"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == "devices"}, name_of(path)
    for path in python_files("devices"):
        high = {name for name in imports_of(path) if HIGH.match(name)}
        assert not high, name_of(path)


def test_protocol_code_touches_no_operating_system():
    wrong = []
    for path in python_files(*SANS_IO):
        wrong += [f"{name_of(path)}: {name}" for name in imports_of(path) if name.split(".")[0] in NO_IO]
        for module, name, line in facts_of(path).used:
            if not OS_NAMES_ALLOWED.match(name):
                wrong.append(f"{name_of(path)}:{line} {module}.{name}")
    assert wrong == []


def test_no_import_brings_in_everything():
    star = re.compile(r"^from .* import \*", re.MULTILINE)
    assert [name_of(path) for path in python_files(*CODE, "tests") if star.search(path.read_text())] == []


def test_packages_say_what_they_are():
    folders = {path.parent for path in python_files(*CODE)}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
    for folder in sorted(folders):
        tree = ast.parse((folder / "__init__.py").read_text())
        assert ast.get_docstring(tree), f"{name_of(folder)}/__init__.py has no docstring"
    main = [ROOT / "vmsim" / name for name in set.union(*LAYERS) if (ROOT / "vmsim" / name).is_dir()]
    main.append(ROOT / "devices" / "virtio_fs")
    assert [name_of(folder) for folder in main if not (folder / "README.md").exists()] == []


def test_every_dependency_is_imported():
    """Or waits for the work that it was chosen for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imported = {name.partition(".")[0] for path in python_files(*CODE) for name in imports_of(path)}
    declared = {re.split(r"[<>=~! ]", one)[0] for one in project["dependencies"]}
    unused = {name for name in declared if IMPORT_NAMES.get(name, name) not in imported}
    assert unused == NATIVE_GUESTS


def test_the_top_level_is_fixed():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    made_by_tools = {"build", "__pycache__"} | {name for name in folders if name.endswith(".egg-info")}
    assert folders - made_by_tools <= TOP_LEVEL


UNFINISHED = "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"))
REGISTRIES = r"\.debian\.(?:org|net)|pypi\.[o]rg|[r]egistry\.npmjs|[p]ythonhosted"
HOME_PATHS = r"/(home|root|Users)/\w+/"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(rf"\b({UNFINISHED})\b", "finish it"), (REGISTRIES, "no registry is named here"),
     (HOME_PATHS, "no path of one machine")],
)
def test_nothing_foreign_in_the_tree(pattern, why):
    found = []
    for folder in (*sorted(TOP_LEVEL), ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts or path.suffix in {".bin", ".pyc", ".gz"}:
                continue
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if re.search(pattern, line):
                    found.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert found == [], why
