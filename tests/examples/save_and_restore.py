"""Save a machine into a file, and go on with it later, here or anywhere else.

Run:    python save_and_restore.py DIR
Prints: hello, again
"""

import os
import sys
import tempfile

from vmsim import Machine

with tempfile.TemporaryDirectory() as folder:
    saved = os.path.join(folder, "machine")
    with Machine(sys.argv[1]) as vm:
        fd = vm.mount().open("/notes", os.O_RDWR | os.O_CREAT)
        vm.mount().write(fd, b"hello")
        vm.save(saved, keep_running=False)
    with Machine.restore(saved, share=sys.argv[1]) as vm:
        fs = vm.mount()
        fs.write(fd, b", again")  # the descriptor is open, at the offset that it had
        print(fs.pread(fd, 100, 0).decode())
