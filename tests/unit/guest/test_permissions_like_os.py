"""Users of the guest against users of the host: the same random calls give the same errors and trees.

``default_permissions`` leaves the decision to the guest; a real process with the same ids is the oracle.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys

import pytest

from tests.support.sampling import product
from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.skipif(not LinuxFs().privileged, reason="needs to be anybody")

USERS = [(0, 0, []), (1000, 1000, []), (1001, 1001, [1000]), (1002, 1000, [1003]), (1003, 1003, [])]
OPEN_FLAGS = [
    os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH,
    os.O_RDONLY | os.O_NOATIME,
]  # fmt: skip
MODES = [0o777, 0o755, 0o700, 0o770, 0o750, 0o711, 0o000, 0o444, 0o222, 0o644, 0o600, 0o660, 0o607, 0o070]
SPECIAL = [0, 0, 0, stat.S_ISVTX, stat.S_ISGID, stat.S_ISUID, stat.S_ISGID | stat.S_ISUID]
STEPS = 250

CALLS = """
from os import O_WRONLY

def write(os, root, path, data):
    fd = os.open(root + path, O_WRONLY)
    try:
        os.write(fd, data.encode())
    finally:
        os.close(fd)

def opened(os, root, path, flags, mode):
    os.close(os.open(root + path, flags, mode))

def one(name):
    return lambda os, root, path, *args: getattr(os, name)(root + path, *args)

def two(name):
    return lambda os, root, src, dst: getattr(os, name)(root + src, root + dst)

def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "st_mode"):
        size = value.st_size if value.st_mode & 0o170000 == 0o100000 else 0
        return [value.st_mode, value.st_uid, value.st_gid, value.st_nlink, size]
    return sorted(value) if isinstance(value, list) else value

TABLE = {
    **{name: one(name) for name in (
        "stat", "lstat", "listdir", "mkdir", "rmdir", "unlink", "chmod", "chown", "truncate", "access",
        "readlink",
    )},
    "rename": two("rename"), "link": two("link"),
    "symlink": lambda os, root, target, path: os.symlink(target, root + path),
    "open": opened, "write": write,
    "stamp": lambda os, root, path, at: os.utime(root + path, ns=(at, at)),
    "touch": lambda os, root, path: os.utime(root + path),
}

def attempt(os, root, name, args):
    try:
        return ["is", plain(TABLE[name](os, root, *args))]
    except OSError as error:
        return ["raises", error.errno]
"""

SERVER = (
    CALLS
    + """
import json, os, sys
os.umask(0o022)
for line in sys.stdin:
    (uid, gid, groups), name, args = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.write(writer, json.dumps(attempt(os, sys.argv[1], name, args)).encode())
        os._exit(0)
    os.close(writer)
    print(os.read(reader, 1 << 16).decode(), flush=True)
    os.close(reader)
    os.waitpid(child, 0)
"""
)
LOCAL: dict = {}
exec(CALLS, LOCAL)


class Host:
    """Processes of the host, one per call."""

    def __init__(self, root):
        command = [sys.executable, "-c", SERVER, "."]  # nobody else may walk down to it
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, cwd=root, **pipes)

    def __call__(self, user, name, args):
        self.process.stdin.write(json.dumps([user, name, args]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def path(rng, deep=True):
    names = ["a", "b", "c"]
    folder = rng.choice(["", "d0/", "d1/", "d2/", "d3/"] + (["d0/d/", "d2/d/"] if deep else []))
    return "/" + folder + rng.choice([*names, "d"])


def step(rng):
    """One call: name and arguments, as plain data."""
    name = rng.choice([
        "stat", "lstat", "listdir", "open", "open", "open", "write", "write", "mkdir", "rmdir", "unlink",
        "rename", "rename", "rename", "chmod", "chmod", "chown", "chown", "truncate", "access", "touch",
         "stamp", "readlink", "link", "symlink",
    ])  # fmt: skip
    somewhere = path(rng) if rng.random() < 0.9 else f"/d{rng.randrange(4)}"
    args = {
        "open": lambda: [rng.choice(OPEN_FLAGS), rng.choice(MODES) | rng.choice(SPECIAL)],
        "write": lambda: ["x" * rng.randrange(1, 9)],
        "mkdir": lambda: [rng.choice(MODES) | rng.choice(SPECIAL)],
        "rename": lambda: [path(rng)],
        "link": lambda: [path(rng)],
        "chmod": lambda: [rng.choice(MODES) | rng.choice(SPECIAL)],
        "chown": lambda: [rng.choice([-1, 0, 1000, 1001, 1003]), rng.choice([-1, 0, 1000, 1001, 1003])],
        "truncate": lambda: [rng.randrange(20)],
        "access": lambda: [rng.randrange(16)],
        "stamp": lambda: [rng.randrange(10**15)],
    }.get(name, list)()
    return (name, [rng.choice(["a", "d/b"]), somewhere]) if name == "symlink" else (name, [somewhere, *args])


def build(root, rng):
    """A tree that belongs to various people."""
    root.chmod(0o777)
    folders = [root / f"d{n}" for n in range(4)]
    folders += [root / "d0" / "d", root / "d2" / "d"]
    for folder in folders:
        folder.mkdir()
        for name in "ab":
            (folder / name).write_bytes(b"0123456789")
    for item in sorted(root.rglob("*"), reverse=True):
        uid, gid, _ = rng.choice(USERS)
        os.chown(item, uid, gid)
        item.chmod(rng.choice(MODES[:6]) | rng.choice(SPECIAL))


def listing(root):
    found = {}
    for item in sorted(root.rglob("*")):
        found[str(item.relative_to(root))] = LOCAL["plain"](item.lstat())
    return found


def needs_no_sysctl(user, name, host_root, args):
    """fs.protected_hardlinks is the distribution's policy, and the host's: only owners link here."""
    if name != "link" or user[0] == 0:
        return True
    try:
        return (host_root / args[0][1:]).lstat().st_uid == user[0]
    except OSError:
        return True


GUESTS = {
    "plain": {},
    "writeback": {"dentries": 256, "cache": "writeback", "options": {"writeback": True}},
    "killpriv": {"cache": "writethrough", "options": {"killpriv_v2": True}},
}


@pytest.mark.parametrize(("seed", "kind"), product("random calls by users", 3, range(5), GUESTS))
def test_users_are_held_to_the_same_rules(rig, tmp_path, set_umask, seed, kind):
    host_root = tmp_path / "host"
    host_root.mkdir()
    build(tmp_path / "share", random.Random(seed))
    build(host_root, random.Random(seed))
    guest = rig(**GUESTS[kind])
    assert listing(guest.share) == listing(host_root)
    rng = random.Random(f"steps {seed}")
    host = Host(host_root)
    guest.fs.umask(0o022)
    set_umask(0)
    try:
        for _ in range(STEPS):
            user = rng.choice(USERS)
            name, args = step(rng)
            if not needs_no_sysctl(user, name, host_root, args):
                continue
            theirs = host(user, name, args)
            with guest.fs.as_user(*user):
                ours = LOCAL["attempt"](guest.fs, "", name, args)
            assert ours == theirs, (user, name, args)
        guest.fs.sync()
        assert listing(guest.share) == listing(host_root)
    finally:
        host.close()
