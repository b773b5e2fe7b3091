"""What cffi made of the declarations is what it makes of them now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_committed_module_is_that_of_the_declarations(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("libc_declarations", ROOT / "tools/libc_declarations.py")
    assert spec is not None
    assert spec.loader is not None
    declarations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(declarations)
    made = tmp_path / "libc_ffi.py"
    declarations.prepare(str(made))
    assert made.read_text() == (ROOT / "vmsim/host/fs/libc_ffi.py").read_text(), (
        "run tools/libc_declarations.py with the environment's interpreter"
    )
