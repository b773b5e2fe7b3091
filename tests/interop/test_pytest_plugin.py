"""The plugin's example and fixtures on the real virtiofsd."""

from __future__ import annotations

import pytest

from tests.interop.test_check_virtiofsd import virtiofsd_command
from tests.support.plugin_rig import MORE, example, outcomes, run_pytest

pytestmark = pytest.mark.interop


def test_the_example_on_virtiofsd(peers, tmp_path):
    (tmp_path / "test_my_backend.py").write_text(example() + MORE)
    done = run_pytest(
        tmp_path, "--vhost-user-start", virtiofsd_command(peers), "--vmsim-cases", "fuse.rename",
        "--vmsim-cases", "hostile.lookup-no-name", "--vmsim-cases", "rings.packed",
    )  # fmt: skip
    found = outcomes(done)
    assert found.pop("test_case[hostile.lookup-no-name]") == "failed", "it is known to die of that"
    assert "panicked at" in done.stdout
    assert "1 skipped" in done.stdout, "packed rings"
    assert {name: outcome for name, outcome in found.items() if outcome == "passed"} == {
        "test_a_file_moves_with_its_guest": "passed", "test_a_front_end": "passed", "test_a_mount": "passed",
        "test_case[fuse.rename]": "passed",
    }, done.stdout + done.stderr  # fmt: skip
