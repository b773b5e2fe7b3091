"""Send a machine to another process through a socket.

Run:    python two_processes.py DIR
Prints: b'from the other process' came with the machine
"""

import os
import subprocess
import sys
import tempfile

from vmsim import Machine

RECEIVER = """
import sys
from vmsim import Machine
with Machine.receive("unix:" + sys.argv[1], sys.argv[2]) as vm:
    print(vm.mount().pread(int(sys.argv[3]), 100, 0), "came with the machine")
"""

with tempfile.TemporaryDirectory() as folder, Machine(sys.argv[1]) as vm:
    fs = vm.mount()
    fd = fs.open("/file", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"from the other process")
    path = os.path.join(folder, "migration.sock")
    other = subprocess.Popen([sys.executable, "-c", RECEIVER, path, sys.argv[1], str(fd)])
    while not os.path.exists(path):
        vm.schedule.sleep_ns(10_000_000)
    vm.send(f"unix:{path}")
    sys.exit(other.wait())
