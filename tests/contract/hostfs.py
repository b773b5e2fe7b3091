"""What every implementation of seam S3 (``HostFs``) must do; ``base`` is an empty directory (a Path)."""

from __future__ import annotations

import errno
import os

from tests.support.direct_fs import refused


class Opened:
    """``opened(host, fd)``: the descriptor, closed at the end of the block."""

    def __init__(self, host, fd):
        self.host, self.fd = host, fd

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        self.host.close(self.fd)


def opened(host, base, path=None, flags=os.O_PATH):
    root = host.open_share(os.fsencode(base))
    if path is None:
        return Opened(host, root)
    try:
        return Opened(host, host.open_beneath(root, path, flags))
    finally:
        host.close(root)


def check_open_beneath_stays_beneath(host, base):
    (base / "d").mkdir()
    (base / "d" / "f").write_bytes(b"1")
    (base / "out").symlink_to("/")
    (base / "in").symlink_to("d")
    (base / "d" / "end").symlink_to("f")
    with opened(host, base) as root:
        host.close(host.open_beneath(root, b"d/f", os.O_RDONLY))
        for path, code in (
            (b"out/etc", (errno.ELOOP, errno.ENOTDIR)), (b"in/f", (errno.ELOOP, errno.ENOTDIR)),
            (b"/etc", (errno.EXDEV,)), (b"../x", (errno.EXDEV,)), (b"d/../../x", (errno.EXDEV,)),
            (b"d/end", (errno.ELOOP,)), (b"", (errno.ENOENT,)), (b"d/f/x", (errno.ENOTDIR,)),
        ):  # fmt: skip
            try:
                host.close(host.open_beneath(root, path, os.O_RDONLY))
            except OSError as error:
                assert error.errno in code, (path, error)  # noqa: PT017
            else:
                raise AssertionError(f"{path!r} was opened")
    with opened(host, base, b"d/end") as link:
        assert host.readlink(link) == b"f"


def check_attributes(host, base):
    (base / "a").write_bytes(b"12345")
    there = (base / "a").stat()
    with opened(host, base) as root, opened(host, base, b"a") as fd:
        attr = host.fstat(fd)
        assert attr == host.identify(fd)[0] == host.identify_name(root, b"a")[0]
        assert len(attr) == 16
        assert (attr[0], attr[1], attr[9], attr[10]) == (there.st_ino, 5, there.st_mode, 1)
        assert attr[4] * 10**9 + attr[7] == there.st_mtime_ns
        _, dev, mnt_id, _ = host.identify(fd)
        assert dev == there.st_dev
        assert host.identify_at(root, b"a") == (dev, there.st_ino, mnt_id, there.st_mode)
        assert host.birth(fd) == host.birth_at(root, b"a")
        statx = host.statx(fd, 0, 0xFFF)
        assert len(statx) == 23
        assert (statx[6], statx[7], statx[8]) == (there.st_mode, there.st_ino, 5)
        assert host.fstatvfs(fd)[5:7] == (os.statvfs(base).f_bsize, os.statvfs(base).f_namemax)


def check_changing_attributes(host, base):
    (base / "a").touch()
    (base / "s").symlink_to("nowhere")
    with opened(host, base, b"a") as fd:
        host.chmod(fd, 0o641)
        host.chown(fd, -1, os.getgid())
        host.utimens(fd, (1, 2), (3, 4))
        there = (base / "a").stat()
        assert there.st_mode & 0o777 == 0o641
        assert (there.st_atime_ns, there.st_mtime_ns) == (10**9 + 2, 3 * 10**9 + 4)
        host.utimens(fd, (0, (1 << 30) - 2), (9, 9))
        assert (base / "a").stat().st_atime_ns == 10**9 + 2
        host.access(fd, os.R_OK)
    with opened(host, base, b"s") as fd:
        host.utimens(fd, (5, 0), (5, 0))
        assert (base / "s").lstat().st_mtime == 5


def check_names(host, base):
    with opened(host, base) as root:
        host.mkdir(root, b"d", 0o777, 0o22)
        host.mknod(root, b"n", 0o100666, 0, 0o22)
        host.symlink(b"target", root, b"s")
        assert ((base / "d").stat().st_mode & 0o777, (base / "n").stat().st_mode & 0o777) == (0o755, 0o644)
        with opened(host, base, b"n") as fd, opened(host, base, b"s") as link:
            host.link(fd, root, b"n2")
            host.link(link, root, b"s2")
        assert os.readlink(base / "s2") == "target"
        host.rename(root, b"n2", root, b"n3", 0)
        with refused(errno.EEXIST):
            host.rename(root, b"n3", root, b"n", 1)
        listed, position = {}, 0
        while entries := host.getdents(root, position):
            for ino, position, kind, name in entries:  # noqa: B007
                listed[name] = (ino, kind)
        assert set(listed) == {b".", b"..", b"d", b"n", b"n3", b"s", b"s2"}
        assert listed[b"n"] == ((base / "n").stat().st_ino, 8)
        host.unlink(root, b"n3")
        host.rmdir(root, b"d")
        with refused(errno.ENOENT):
            host.unlink(root, b"n3")


def check_contents(host, base):
    (base / "a").write_bytes(b"0123456789")
    with opened(host, base, b"a", os.O_RDWR) as fd:
        first, second = bytearray(3), bytearray(4)
        assert host.preadv(fd, [memoryview(first), memoryview(second)], 2) == 7
        assert (first, second) == (b"234", b"5678")
        assert host.pwritev(fd, [memoryview(b"ab"), memoryview(b"c")], 1) == 3
        assert host.appendv(fd, [memoryview(b"END")]) == 3
        host.ftruncate(fd, 12)
        assert (base / "a").read_bytes() == b"0abc456789EN"
        host.fallocate(fd, 0, 0, 100)
        assert host.fstat(fd)[1] == 100
        host.fsync(fd, True)
        host.fsync(fd, False)
        host.flush(fd)
        assert host.copy_file_range(fd, 0, fd, 50, 4) == 4
        assert host.poll(fd, 5) == 5
    assert (base / "a").read_bytes()[50:54] == b"0abc"


def check_reopening(host, base):
    (base / "a").write_bytes(b"x")
    with opened(host, base, b"a") as fd:
        (base / "a").rename(base / "b")
        with Opened(host, host.reopen(fd, os.O_RDWR)) as again:
            assert host.pwritev(again, [memoryview(b"y")], 0) == 1
        assert host.path_of(fd) == os.fsencode(base / "b")
    assert (base / "b").read_bytes() == b"y"


def check_file_handles(host, base):
    (base / "a").write_bytes(b"x")
    with opened(host, base) as root, opened(host, base, b"a") as fd:
        try:
            mnt_id, kind, raw = host.file_handle(fd)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP  # noqa: PT017
            return
        assert host.file_handle_at(root, b"a") == (mnt_id, kind, raw)
        assert mnt_id == host.identify(fd)[2]
        assert mnt_id in {row[0] for row in host.mount_points()}
        if not host.handles_allowed():
            with refused(errno.EPERM):
                host.open_handle(root, kind, raw, os.O_PATH)
            return
        with Opened(host, host.open_handle(root, kind, raw, os.O_PATH)) as again:
            assert host.identify(again) == host.identify(fd)
    (base / "a").unlink()
    with opened(host, base) as root, refused(errno.ESTALE):
        host.open_handle(root, kind, raw, os.O_PATH)


def check_locks(host, base):
    (base / "a").touch()
    with opened(host, base, b"a", os.O_RDWR) as one, opened(host, base, b"a", os.O_RDWR) as two:
        host.set_lock(one, 1, 0, 10)
        assert host.get_lock(two, 0, 5, 0)[:3] == (1, 0, 10)
        with refused(errno.EAGAIN):
            host.set_lock(two, 0, 9, 1)
        host.set_lock(one, 2, 0, 0)
        assert host.get_lock(two, 1, 0, 0) is None
        host.flock(one, 2)
        with refused(errno.EAGAIN):
            host.flock(two, 1)
        host.flock(one, 8)
        host.flock(two, 1)


def check_memory_file(host, base):
    with Opened(host, host.memory_file(b"name")) as fd:
        host.pwritev(fd, [memoryview(b"data")], 0)
        assert host.fstat(fd)[1] == 4


def check_limits(host, base):
    assert host.fd_limit() >= 256


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
