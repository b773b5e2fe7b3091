"""Boot a machine on a directory, and work in it with functions named as in ``os``.

Run:    python boot_and_use.py DIR
Prints: notes.txt has 5 bytes
"""

import sys

from vmsim import Machine

with Machine(sys.argv[1], memory="32M") as vm:
    fs = vm.mount()
    with fs.open_file("/notes.txt", "w") as file:
        file.write("hello")
    for name in fs.listdir("/"):
        print(f"{name} has {fs.stat(name).st_size} bytes")
