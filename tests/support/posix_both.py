"""``os`` twice: on a directory of the host, and through a guest's facade; see ``posix``."""

from __future__ import annotations

import fcntl
import os
import stat


class P(str):
    """A path from the root of either side."""


class Fd:
    """A descriptor of either side."""

    def __init__(self, guest, host):
        self.guest, self.host = guest, host


class Files:
    """Two file objects that must behave alike."""

    def __init__(self, guest, host):
        self.pair = (guest, host)

    def __getattr__(self, name):
        def call(*args):
            results = [outcome(getattr(file, name), args, {}) for file in self.pair]
            assert results[0] == results[1], (name, args, results)
            return results[0][1]

        return call


def outcome(call, args, kwargs):
    """("is", value) or ("raises", errno or type of the exception)."""
    try:
        return "is", call(*args, **kwargs)
    except OSError as error:
        return "raises", type(error) if error.errno is None else error.errno
    except (ValueError, TypeError, StopIteration) as error:
        return "raises", type(error)


def plain(value):
    """A result without what may differ: numbers of devices and inodes, and times."""
    if isinstance(value, os.stat_result):
        size = 0 if stat.S_ISDIR(value.st_mode) else value.st_size
        return ("stat", value.st_mode, value.st_nlink, value.st_uid, value.st_gid, size, value.st_rdev)
    if isinstance(value, list):
        return sorted(value)
    return value


class Both:
    """``os`` twice. Paths are ``P``, ``open`` and ``dup`` give an ``Fd``; what is unequal fails the check."""

    def __init__(self, fs, host_root):
        self.fs = fs
        self.root = os.fspath(host_root)

    def guest_path(self, path):
        return "/" + path

    def host_path(self, path):
        return self.root + "/" + path

    def args(self, values, side):
        convert = self.guest_path if side == "guest" else self.host_path
        return [
            convert(v) if isinstance(v, P) else getattr(v, side) if isinstance(v, Fd) else v
            for v in values
        ]

    def results(self, name, args, kwargs):
        found = []
        for side, api in (("guest", self.fs), ("host", os)):
            named = dict(zip(kwargs, self.args(kwargs.values(), side), strict=True))
            found.append(outcome(getattr(api, name), self.args(args, side), named))
        return found

    def __getattr__(self, name):
        def call(*args, **kwargs):
            guest, host = self.results(name, args, kwargs)
            if name in ("open", "dup") and guest[0] == host[0] == "is":
                return Fd(guest[1], host[1])
            guest, host = (guest[0], plain(guest[1])), (host[0], plain(host[1]))
            assert guest == host, f"{name}{args}{kwargs}: guest {guest}, host {host}"
            return host[1]

        return call

    def flock(self, fd, operation):
        calls = ((self.fs.flock, fd.guest), (fcntl.flock, fd.host))
        results = [outcome(call, (number, operation), {}) for call, number in calls]
        assert results[0] == results[1], results
        return results[0][1]

    def file(self, path, *args, **kwargs):
        guest = outcome(self.fs.open_file, (self.guest_path(path), *args), kwargs)
        host = outcome(open, (self.host_path(path), *args), kwargs)
        if guest[0] == host[0] == "is":
            return Files(guest[1], host[1])
        assert guest == host
        return guest[1]

    def make(self, path, data=b"", mode=0o644):
        fd = self.open(P(path), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
        assert self.write(fd, data) == len(data)
        self.close(fd)

    def content(self, path):
        fd = self.open(P(path), os.O_RDONLY)
        data = self.read(fd, 1 << 20)
        self.close(fd)
        return data


def tree(root):
    """What a directory of the host holds, by path, without what may differ."""
    found = {}
    for folder, folders, files in os.walk(root):
        for path in (os.path.join(folder, name) for name in (*folders, *files)):
            st = os.lstat(path)
            content = b""
            if stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            names = os.listxattr(path, follow_symlinks=False)
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
            found[os.path.relpath(path, root)] = (*plain(st), content, attributes)
    return found


def expect_equal(both, name, *args, **kwargs):
    """A call that fails alike on both sides."""
    guest, host = both.results(name, args, kwargs)
    for result, close in ((guest, both.fs.close), (host, os.close)):
        if name == "open" and result[0] == "is":
            close(result[1])
    assert guest == host, f"{name}{args}{kwargs}: guest {guest}, host {host}"
