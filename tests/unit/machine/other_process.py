"""The other process of the tests in test_processes.py: takes a machine over and tells what it finds there.

    other_process.py restore FILE SHARE PLAN        (PLAN and the answer are JSON)
    other_process.py receive URI-or-fd SHARE PLAN
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from typing import Any

from vmsim.host.channels import SocketChannel
from vmsim.machine import Machine


def attempt(act: Any) -> Any:
    """What it returns, or the errno that it raises."""
    try:
        return act()
    except OSError as error:
        return errno.errorcode[error.errno]


def look(vm: Machine, plan: dict[str, Any]) -> dict[str, Any]:
    """Everything that the plan's descriptors tell, and then a little work."""
    fs = vm.mount()
    found: dict[str, Any] = {
        "offset": fs.lseek(plan["fd"], 0, os.SEEK_CUR),
        "content": fs.pread(plan["fd"], 1000, 0).decode(),
        "unlinked": fs.pread(plan["unlinked"], 1000, 0).decode(),
        "nlink": fs.fstat(plan["unlinked"]).st_nlink,
        "renamed": fs.pread(plan["renamed"], 1000, 0).decode(),
        "same": fs.fstat(plan["renamed"]).st_ino == fs.stat("/d/after").st_ino,
        "folder": sorted(fs.listdir(plan["folder"])),
        "notes": {name: note.decode() for name, note in vm.programs.items()},
        "cwd": fs.getcwd() if hasattr(fs, "getcwd") else "",
    }
    with open(os.path.join(vm.share, "locked"), "r+b") as third_party:
        found["locked"] = attempt(lambda: fcntl.lockf(third_party, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fs.write(plan["fd"], b" and from there")
    fs.write(plan["append"], b"y")
    found["flushed"] = attempt(lambda: fs.fsync(plan["fd"]))
    return found


def main() -> None:
    command, where, share, plan_text = sys.argv[1:]
    plan = json.loads(plan_text)
    if command == "restore":
        vm = Machine.restore(where, share=share)
    elif where.isdecimal():
        vm = Machine.receive(SocketChannel(socket.socket(fileno=int(where))), share)
    else:
        vm = Machine.receive(where, share)
    with vm:
        print(json.dumps(look(vm, plan)))


if __name__ == "__main__":
    main()
