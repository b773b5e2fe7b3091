"""Tables of calls by users on files: made on the host and by a guest, compared in errno and effect."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import subprocess
import sys
from typing import NamedTuple

from tests.support import permission_calls as calls
from tests.support.sampling import in_pairs

ALL = range(41)
REFUSALS = ("EPERM", "EACCES", "ENOTDIR")
CAPABILITIES = {
    "chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "linux_immutable": 9,
    "sys_admin": 21, "mknod": 27, "setfcap": 31,
}  # fmt: skip
USERS = {
    "root": (0, 0, [], None), "owner": (1000, 1000, [], None), "owner in group": (1000, 1000, [2000], None),
    "member": (1001, 1001, [2000], None), "group": (1001, 2000, [], None), "stranger": (1002, 1002, [], None),
    "in both": (1003, 1003, [3000, 2000], None), "other group": (1004, 1004, [3000], None),
}  # fmt: skip
LACKING = {
    f"root without {name}": (0, 0, [], [n for n in ALL if n != number])
    for name, number in CAPABILITIES.items()
}
LACKING["root without dac"] = (0, 0, [], [n for n in ALL if n not in (1, 2)])
LACKING["root without any"] = (0, 0, [], [])
HAVING = {f"stranger with {name}": (1002, 1002, [], [number]) for name, number in CAPABILITIES.items()}
EVERYBODY = {**USERS, **LACKING, **HAVING}


def users(*capabilities):
    """Everybody without capabilities, and those whom one of these makes different."""
    told = [f"{who} {name}" for who in ("root without", "stranger with") for name in capabilities]
    both = ["root without dac"] if "dac_override" in capabilities else []
    return [*USERS, *told, "root without any", *both]


class Scene(NamedTuple):
    """A file of some kind, and the directory that it is in."""

    kind: str = "file"
    mode: int = 0o644
    owner: tuple = (1000, 2000)
    parent: tuple = (0, 0, 0o777)
    acl: bytes = b""
    default_acl: bytes = b""
    flags: int = 0
    parent_flags: int = 0
    attributes: bool = False

    @property
    def flagged(self):
        return self.flags or self.parent_flags

    def build(self, cell, others):
        """Make it at ``cell``: target ``t``; with ``others`` another file ``o``, an open directory ``e``."""
        os.mkdir(cell)
        target = f"{cell}/t"
        if others or self.kind == "symlink":
            _write(f"{cell}/o", 0o646)
            os.mkdir(f"{cell}/e")
            os.chmod(f"{cell}/e", 0o777)
        if self.kind == "file":
            _write(target, self.mode)
        elif self.kind == "directory":
            os.mkdir(target)
            os.mkdir(f"{target}/d")
            with open(f"{target}/f", "wb"):
                pass
            os.chown(f"{target}/f", 1001, 1001)
            os.chown(f"{target}/d", 1001, 1001)
        elif self.kind == "fifo":
            os.mkfifo(target)
        elif self.kind == "symlink":
            os.symlink("o", target)
        os.lchown(target, *self.owner)
        if self.kind != "symlink":
            os.chmod(target, self.mode)
        self._decorate(target)
        os.chown(cell, *self.parent[:2])
        os.chmod(cell, self.parent[2])
        os.utime(target, (calls.LONG_AGO, calls.LONG_AGO), follow_symlinks=False)
        for path, flags in ((target, self.flags), (cell, self.parent_flags)):
            if flags:
                change_flags(path, 0, flags)

    def _decorate(self, target):
        if self.acl:
            os.setxattr(target, "system.posix_acl_access", self.acl)
        if self.default_acl:
            os.setxattr(target, "system.posix_acl_default", self.default_acl)
        if self.attributes:
            names = ("trusted.a", "security.a")
            if self.kind in ("file", "directory"):
                names += ("user.a",)
            for name in names:
                os.setxattr(target, name, b"0", follow_symlinks=False)
            if self.kind == "file":
                os.setxattr(target, "security.capability", calls.FILE_CAPABILITY)


def _write(path, mode):
    with open(path, "wb") as file:
        file.write(b"0123456789")
    os.chmod(path, mode)


def change_flags(path, remove, add=0):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        (flags,) = struct.unpack("i4x", fcntl.ioctl(fd, calls.GETFLAGS, bytes(8)))
        wanted = flags & ~remove | add
        if wanted != flags:
            fcntl.ioctl(fd, calls.SETFLAGS, struct.pack("q", wanted))
        return flags
    finally:
        os.close(fd)


def effect(cell, accessed, flags):
    """All that a call can have changed beneath a cell, by path; times of access and flags only on demand."""
    found = {"": _facts(cell, "", accessed, flags)[1:]}
    folders = [""]
    while folders:
        folder = folders.pop()
        for name in os.listdir(cell + folder):
            path = f"{folder}/{name}"
            is_folder, *found[path] = _facts(cell + path, name, accessed, flags)
            if is_folder:
                folders.append(path)
    return found


def _facts(path, name, accessed, with_flags):
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    size = st.st_size if kind == stat.S_IFREG else 0
    flags = 0
    if with_flags and kind in (stat.S_IFREG, stat.S_IFDIR):
        flags = change_flags(path, 0) & calls.SHOWN_FLAGS
    names = sorted(os.listxattr(path, follow_symlinks=False))
    attributes = {each: _value(path, each) for each in names}
    ours = kind == stat.S_IFREG and name == "t"
    times = [_when(st.st_atime_ns), _when(st.st_mtime_ns)][not accessed :] if ours else []
    facts = [st.st_mode, st.st_uid, st.st_gid, st.st_nlink, size, st.st_rdev, times, flags, attributes]
    return [kind == stat.S_IFDIR, oct(facts[0]), *facts[1:]]


def _value(path, name):
    try:
        return os.getxattr(path, name, follow_symlinks=False).hex()
    except OSError as error:
        return errno.errorcode[error.errno]


def _when(ns):
    return "now" if ns > calls.LONG_AGO * 10**9 else ns


class Side(NamedTuple):
    """A guest on a share; it makes one in ``one_in`` of the calls, and every pair of scene, call and user."""

    guest: object
    share: str
    one_in: int


class Table:
    """The same cells on the host and in guests: ``run`` makes the calls in all, and returns the differences.

    A plain run of the tests takes one cell in ``one_in``, and with every pair of scene, call and user; the
    position of a cell is the sum of its three (``sampling.in_pairs``).
    """

    def __init__(self, sides, host_root, name, one_in):
        self.sides = sides
        self.name = name
        self.one_in = one_in
        self.host_root = str(host_root)
        self.cells = []
        self.positions = []
        self.any_refusal = False

    def add(self, scenes, names, users):
        for at, scene in enumerate(scenes):
            for after, name in enumerate(names):
                for last, user in enumerate(users):
                    self.cells.append((scene, name, user))
                    self.positions.append(at + after + last)

    def run(self):
        everything = in_pairs(self.positions, self.one_in, self.name)
        # The part of a part: what is left of a position when the first choice is taken out of it.
        step = 1 if len(everything) == len(self.cells) else self.one_in
        parts = [
            [number for number in everything if self.positions[number] // step % side.one_in == 0]
            for side in self.sides
        ]
        made = [(self.host_root, everything), *zip((side.share for side in self.sides), parts, strict=True)]
        for root, numbers in made:
            os.chmod(root, 0o777)
            for number in numbers:
                scene, name, _ = self.cells[number]
                scene.build(f"{root}/{number}", name in calls.WITH_OTHERS)
        try:
            theirs = self._on_host(everything)
            theirs = {number: (theirs[number], self._effect(self.host_root, number)) for number in everything}
            found = []
            for side, numbers in zip(self.sides, parts, strict=True):
                ours = self._in_guest(side.guest.fs, numbers)
                side.guest.fs.sync()
                found += [self._compare(n, theirs[n], ours[n], side.share) for n in numbers]
            return [line for line in found if line]
        finally:
            for root, numbers in made:
                for number in numbers:
                    scene, name, _ = self.cells[number]
                    if scene.flagged or name.startswith("+"):
                        self._unflag(f"{root}/{number}")

    def _unflag(self, cell):
        for path in (cell, f"{cell}/t"):
            if os.path.exists(path) and not os.path.islink(path):
                change_flags(path, calls.SHOWN_FLAGS)

    def _by_user(self, numbers):
        order = {}
        for number in numbers:
            _, name, user = self.cells[number]
            order.setdefault(user, []).append((number, name))
        return order

    def _on_host(self, numbers):
        order = self._by_user(numbers)
        lines = [
            json.dumps([EVERYBODY[user], [(str(number), name) for number, name in work]])
            for user, work in order.items()
        ]
        done = subprocess.run(
            [sys.executable, calls.__file__], input="\n".join(lines) + "\n", cwd=self.host_root, check=True,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        numbers = [[number for number, _ in work] for work in order.values()]
        return {n: a for ns, row in zip(numbers, answers, strict=True) for n, a in zip(ns, row, strict=True)}

    def _in_guest(self, fs, numbers):
        answers = {}
        fs.umask(0o022)
        for user, work in self._by_user(numbers).items():
            uid, gid, groups, capabilities = EVERYBODY[user]
            with fs.as_user(uid, gid, groups, capabilities=capabilities):
                for number, name in work:
                    answers[number] = json.loads(json.dumps(calls.attempt(fs, f"/{number}/", name)))
        return answers

    def _effect(self, root, number):
        scene, name, _ = self.cells[number]
        accessed = "time" in name or name == "touch"
        return effect(f"{root}/{number}", accessed, scene.flagged or name[0] in "+-")

    def _compare(self, number, host, answer, share):
        scene, name, user = self.cells[number]
        guest = answer, self._effect(share, number)
        if host == guest or (self.any_refusal and host[0] in REFUSALS and guest[0] in REFUSALS):
            return None if host[1] == guest[1] else f"{name} by {user}: refused, and yet {guest[1]}"
        changes = {key: (host[1].get(key), guest[1].get(key)) for key in host[1].keys() | guest[1].keys()
                   if host[1].get(key) != guest[1].get(key)}  # fmt: skip
        said = {key: value for key, value in scene._asdict().items() if value != Scene._field_defaults[key]}
        said["mode"] = oct(scene.mode)
        of = os.path.basename(share)
        return f"{name} by {user} on {said}: host {host[0]}, guest ({of}) {guest[0]}; {changes}"
