"""A program that gives up its privilege while it has a machine: what each step came to, and what is left.

    changed_ids.py TRANSPORT MOMENT FOLDER     MOMENT: "before" a migration, or "during" one
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from vmsim import Machine
from vmsim.errors import VmsimError

NOBODY = 65534
TRANSPORT, MOMENT, FOLDER = sys.argv[1:]


def change_ids() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def attempt(name: str, call: Callable[[], Any]) -> Any:
    """The result; None after an error of the kinds that are promised."""
    try:
        result = call()
    except (VmsimError, OSError) as error:
        kind = "VmsimError" if isinstance(error, VmsimError) else f"OSError {error.errno}"
        print(f"{name}: {kind}: {error}")
        return None
    print(f"{name}: done")
    return result


def moved(number: int, vm: Machine) -> Machine:
    """The machine after a migration, or where it is after one that failed."""
    return attempt(f"migration {number}", lambda: vm.migrate(progress=lambda report: change_ids())) or vm


def use(vm: Machine, fd: int) -> None:
    assert attempt("writing", lambda: vm.mount().write(fd, b"1")) == 1
    with vm.mount().as_user(1000, 1000):
        attempt("somebody else", lambda: vm.mount().stat("/f"))


def main() -> None:
    share, temporary = f"{FOLDER}/share", f"{FOLDER}/temporary"
    for folder in (share, temporary):
        os.mkdir(folder)
        os.chown(folder, NOBODY, NOBODY)
    tempfile.tempdir = temporary
    vm = Machine(share, memory="8M", transport=None if TRANSPORT == "inproc" else TRANSPORT)
    fs = vm.mount()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR, 0o666)
    fs.chown("/f", NOBODY, NOBODY)
    fs.write(fd, b"1")
    if MOMENT == "before":
        change_ids()
    for number in range(2):
        vm = moved(number, vm)
        use(vm, fd)
    assert os.getuid() == NOBODY
    vm.save(f"{temporary}/saved")
    os.unlink(f"{temporary}/saved")
    vm.close()
    del vm
    gc.collect()
    children = ""
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children += file.read()
    print(f"left: {os.listdir(temporary)} {children.split()}")


if __name__ == "__main__":
    main()
