"""Migrate while a program works: it notices nothing but another kernel under it.

Run:    python migrate_under_work.py DIR
Prints: 1000 lines, 3 machines
"""

import os
import sys

from vmsim import Machine


def append(fs):
    fd = fs.open("/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(1000):
        fs.write(fd, b"%d\n" % number)
    fs.close(fd)


vm = Machine(sys.argv[1])
task = vm.spawn("append", append)
machines = 1
for _ in range(2):
    vm.schedule.checkpoint("let it work")
    vm = vm.migrate()
    machines += 1
vm.schedule.join(task)
with vm:
    lines = vm.mount().open_file("/log").read().splitlines()
    assert lines == [str(number) for number in range(1000)]
    print(f"{len(lines)} lines, {machines} machines")
