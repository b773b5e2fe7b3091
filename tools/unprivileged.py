"""A place where a user without privileges can run the tests: readable interpreter, packages and checkout.

The checkout, the environment or the interpreter may lie where nobody else may look (a home folder of mode
0700). They are copied to a temporary folder; nothing else on the machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

NOBODY = 65534
SKIPPED = (".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis", "*.egg-info")
HEAVY = ("__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "site-packages", "config-*")
CHECKERS = ("mypy", "mypyc", "*__mypyc*.so", "ast_serialize", "grimp", "importlinter", "pip", "ruff")
"""Packages that no test imports: two thirds of the environment."""


def run_as_nobody(command: list[str], environment: dict[str, str], cwd: Path) -> bool:
    """Whether a command succeeds as the unprivileged user."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


class Place:
    """A temporary folder with ``checkout``, ``home`` (writable for the user) and an ``environment``."""

    def __init__(self, root: Path, python: Path) -> None:
        self._root = root
        self._python = python
        self._temporary = tempfile.TemporaryDirectory(prefix="vmsim-", ignore_cleanup_errors=True)
        self.base = Path(self._temporary.name)
        self.checkout = self.base / "checkout"
        self.home = self.base / "home"
        self.environment: dict[str, str] = {}
        self._interpreter = [str(python)]

    def __enter__(self) -> Self:
        self.base.chmod(0o755)
        self.home.mkdir()
        os.chown(self.home, NOBODY, NOBODY)
        shutil.copytree(self._root, self.checkout, ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
        packages = self.base / "packages"
        where = "import sysconfig, sys; print(sysconfig.get_path('purelib'), sys.base_prefix, sep=chr(10))"
        found = subprocess.run([str(self._python), "-c", where], capture_output=True, text=True, check=True)
        purelib, prefix = found.stdout.splitlines()
        leave_out = shutil.ignore_patterns("__pycache__", *CHECKERS)
        shutil.copytree(purelib, packages, ignore=leave_out, symlinks=True)
        self._open(self.checkout)
        self._open(packages)
        self.environment = {
            "HOME": str(self.home), "TMPDIR": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{self.checkout}:{packages}", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.home / "hypothesis"),
        }
        self._interpreter = self._usable_interpreter(Path(prefix))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["rm", "-rf", str(self.home)], check=False)  # deeper than Python recurses
        self._temporary.cleanup()

    def command(self, arguments: list[str]) -> list[str]:
        """``python ARGUMENTS`` as the unprivileged user."""
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all",
                "--inh-caps=-all", "--no-new-privs"]
        # The shell is there because setpriv itself can still start what the user may not even look up.
        return [*drop, "/bin/sh", "-c", 'exec "$0" "$@"', *self._interpreter, *arguments]

    def _usable_interpreter(self, prefix: Path) -> list[str]:
        """The interpreter under the environment if the user may run it, else a copy of it."""
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self._interpreter = [str(prefix / "bin" / name)]
        if run_as_nobody(self.command(["-c", "import ssl, pytest, vmsim"]), self.environment, self.checkout):
            return self._interpreter
        copy = self.base / "python"
        (copy / "bin").mkdir(parents=True)
        shutil.copy2((prefix / "bin" / name).resolve(), copy / "bin" / name)
        library = Path("lib") / name
        leave_out = shutil.ignore_patterns(*HEAVY)
        shutil.copytree(prefix / library, copy / library, ignore=leave_out, symlinks=True)
        for shared in (prefix / "lib").glob("libpython*.so*"):
            shutil.copy2(shared, copy / "lib" / shared.name)
        self._open(copy)
        self.environment["LD_LIBRARY_PATH"] = str(copy / "lib")
        return [str(copy / "bin" / name)]

    def _open(self, folder: Path) -> None:
        """Let everybody read a copy."""
        for parent, folders, files in os.walk(folder):
            for name in [".", *folders, *files]:
                path = Path(parent, name)
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
