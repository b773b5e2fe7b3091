"""Migrate a machine whose guest has a file open that has no name any more.

Run:    python migrate_open_file.py DIR
Prints: after the migration: b'only here'
"""

import os
import sys

from vmsim import Machine

with Machine(sys.argv[1]) as vm:
    fs = vm.mount()
    fd = fs.open("/file", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"only here")
    fs.unlink("/file")
    with vm.migrate() as vm2:  # vm is finished now, and its programs go on in vm2
        print("after the migration:", vm2.mount().pread(fd, 100, 0))
