"""Save a machine and look what is in the file: sections, guest memory, the back-end's state.

Run:    python read_a_stream.py DIR
Prints: ... ram ... vmsim/guest ... collected: find-paths ...
"""

import os
import subprocess
import sys
import tempfile

from vmsim import Machine

with tempfile.TemporaryDirectory() as folder:
    saved = os.path.join(folder, "machine")
    with Machine(sys.argv[1], memory="8M") as vm:
        vm.mount().stat("/")
        vm.save(saved)
    command = [sys.executable, "-m", "vmsim.cli", "inspect", saved]
    sys.exit(subprocess.run(command, check=False).returncode)
