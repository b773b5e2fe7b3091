"""A guest process changes its ids and capabilities as one of the host does: random calls, compared."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from vmsim.guest.calls.capabilities import CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID
from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.skipif(not LinuxFs().privileged, reason="needs to be anybody")

TRACKED = 1 << CAP_DAC_OVERRIDE | 1 << CAP_FOWNER | 1 << CAP_SETGID | 1 << CAP_SETUID
IDS = (-1, 0, 1000, 1001)
STEPS = 8

ORACLE = """
import ctypes, errno, json, os, sys

libc = ctypes.CDLL(None, use_errno=True)

class Process:
    def __getattr__(self, name):
        return getattr(os, name)

    def capget(self):
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert not libc.capget(header, data)
        return data[0], data[1]

    def capset(self, effective, permitted):
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(effective, permitted)
        if libc.capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")

def outcomes(process, steps, tracked):
    found = []
    process.capset(tracked, tracked)
    for name, args in steps:
        try:
            getattr(process, name)(*args)
            said = "done"
        except OSError as error:
            said = errno.errorcode[error.errno]
        caps = [bits & tracked for bits in process.capget()]
        ids = [list(process.getresuid()), list(process.getresgid()), process.getuid(), process.geteuid(),
               process.getgid(), process.getegid(), sorted(process.getgroups())]
        found.append([name, args, said, caps, ids])
    return found
"""
SERVER = ORACLE + """
for line in sys.stdin:
    steps, tracked = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.write(writer, json.dumps(outcomes(Process(), steps, tracked)).encode())
        os._exit(0)
    os.close(writer)
    print(os.read(reader, 1 << 16).decode(), flush=True)
    os.close(reader)
    os.waitpid(child, 0)
"""


def step(rng):
    name = rng.choice([
        "setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid",
        "setgroups", "capset",
    ])  # fmt: skip
    if name == "setgroups":
        return name, [rng.sample([7, 8, 9], rng.randrange(3))]
    if name == "capset":
        bits = [rng.choice([0, 1 << CAP_SETUID, 1 << CAP_FOWNER, TRACKED]) for _ in range(2)]
        return name, bits
    count = {"setre": 2, "setres": 3}.get(name[:-3], 1)
    choices = IDS if count > 1 else IDS[1:]
    return name, [rng.choice(choices) for _ in range(count)]


def test_ids_and_capabilities_change_as_on_the_host(rig):
    local: dict = {}
    exec(ORACLE, local)
    scripts = [[step(random.Random(f"{seed} {at}")) for at in range(STEPS)] for seed in range(400)]
    done = subprocess.run(
        [sys.executable, "-c", SERVER], input="".join(json.dumps([s, TRACKED]) + "\n" for s in scripts),
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    fs = rig().fs
    for script, line in zip(scripts, done.stdout.splitlines(), strict=True):
        child = fs.fork()
        ours = local["outcomes"](child, script, TRACKED)
        child.exit()
        for mine, theirs in zip(json.loads(json.dumps(ours)), json.loads(line), strict=True):
            assert mine == theirs, script


def test_credentials_travel_and_are_inherited(rig):
    guest = rig()
    fs = guest.fs
    fs.setgroups([5, 6])
    fs.setresgid(10, 20, 30)
    fs.setresuid(1, 2, 3)
    guest.clone()
    child = fs.fork()
    for process in (fs, child):
        assert process.getresuid() == (1, 2, 3)
        assert process.getresgid() == (10, 20, 30)
        assert process.getgroups() == [5, 6]
        assert process.capget() == (0, 0)
    with fs.as_user(0, 0):
        assert fs.getresuid() == (0, 0, 0)
    assert fs.getresuid() == (1, 2, 3)


def test_access_asks_for_the_real_ids(rig):
    guest = rig()
    fs = guest.fs
    fs.close(fs.open("/f", 0o102, 0o600))
    fs.chown("/f", 1000, 1000)
    fs.setresuid(1000, 1001, 0)
    assert fs.access("/f", 4)
    assert not fs.access("/f", 4, effective_ids=True)
    fs.setresuid(-1, 0, -1)
    assert fs.access("/f", 4, effective_ids=True)
