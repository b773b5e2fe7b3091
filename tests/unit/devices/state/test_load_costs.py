"""What loading a state costs in memory and steps, by the kinds of things that there may be many of."""

from __future__ import annotations

import os

import pytest

from devices.virtio_fs import parked
from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.passthrough.handles import HandleTable
from devices.virtio_fs.passthrough.inodes import FILE_TYPES, NOWHERE, Inode
from devices.virtio_fs.state import blob, extension, records
from devices.virtio_fs.state.collect_content import ContentBudget, TooLarge, _read_extents
from devices.virtio_fs.state.extension import Anonymous, Extension, Flock, HandleExtra, PosixLock
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.records import (
    FileHandle,
    HandleRecord,
    InodeRecord,
    NegotiatedOpts,
    StateBlob,
)
from tests.support.costs import peak_bytes, work
from vmsim import limits
from vmsim.errors import StateError, StreamError
from vmsim.fuse.init import agree, virtiofsd_opts
from vmsim.host.fs import LinuxFs
from vmsim.virtio.chain import ParkedChain
from vmsim.virtio.rings import RingState

INODE_BYTES = 400
"""What an inode may take that the guest knows: its record, name, evidence, and both indices."""

HANDLE_BYTES = 260
"""What an open file may take: its record, and its places in the table and beside its inode."""

MULTIPLES = {
    "paths": (26, 22), "long_paths": (3.4, 2.9), "by_handle": (27, 22), "invalid": (118, 85),
    "missing": (53, 38), "handles": (56, 37), "locks": (37, 28), "locks_without_a_handle": (37, 22),
    "flocks": (31, 8), "mounts": (43, 18), "extents": (17, 10), "xattrs": (22, 6), "parked": (12, 11),
}  # fmt: skip
"""How many times the bytes of the state loading it takes at most, and how many stay: large where an element
has few bytes, such as an inode that is lost (5 of them), a mount (4) or a flock (3)."""
ELEMENT_BYTES = {
    "paths": 90, "long_paths": 90, "by_handle": 105, "invalid": 190, "missing": 190, "locks": 120,
    "extents": 60, "parked": 40,
}  # fmt: skip
"""What an element takes beside what stays of it, while all are loaded."""
ELEMENT_MAX = 230


class Maker:
    """Makes states of so many of something."""

    def __init__(self, share, count):
        self.share = share
        self.count = count
        options = self.backend().options.init_options()
        self.negotiated = agree(options.offered(), 38, 1 << 17, options)

    def backend(self):
        return VirtioFsBackend(LinuxFs(), self.share, state_options=StateOptions(on_error="guest-error"))

    def state(self, inodes, opened=(), mounts=None, **more):
        root = InodeRecord(1, 3 + 2 * self.count, records.ROOT)
        opts = NegotiatedOpts(*virtiofsd_opts(self.negotiated))
        made = blob.encode(StateBlob([root, *inodes], 1 << 40, list(opened), 1 << 40, opts, mounts or {}))
        return bytes(made) + extension.encode(Extension(negotiated=self.negotiated, **more))

    def paths(self):
        for number in range(self.count):
            (self.share / f"file-{number:06d}").touch()
        return self.state(
            InodeRecord(2 + at, 1, records.PATH, 1, b"file-%06d" % at) for at in range(self.count)
        )

    def long_paths(self):
        names = [b"%0200d" % at for at in range(self.count)]
        for name in names:
            (self.share / os.fsdecode(name)).touch()
        return self.state(InodeRecord(2 + at, 1, records.PATH, 1, name) for at, name in enumerate(names))

    def by_handle(self):
        host = LinuxFs()
        if not host.handles_allowed():
            pytest.skip("needs CAP_DAC_READ_SEARCH")
        found = []
        for at in range(self.count):
            path = self.share / f"file-{at:06d}"
            path.touch()
            fd = os.open(path, os.O_PATH)
            found.append(FileHandle(*host.file_handle(fd)))
            os.close(fd)
        inodes = (InodeRecord(2 + at, 1, records.FILE_HANDLE, handle=each) for at, each in enumerate(found))
        return self.state(inodes, mounts={found[0].mnt_id: b"."})

    def invalid(self):
        return self.state(InodeRecord(2 + at, 1, records.INVALID) for at in range(self.count))

    def missing(self):
        return self.state(InodeRecord(2 + at, 1, records.PATH, 1, b"gone") for at in range(self.count))

    def chain(self):
        """Each the parent of the next, in the least convenient order."""
        nodes = [
            InodeRecord(2 + at, 2 if at < self.count - 1 else 1, records.PATH, at + 1, b"x")
            for at in range(self.count)
        ]
        return self.state(reversed(nodes))

    def handles(self):
        """All on one inode that is gone."""
        ids = range(self.count)
        return self.state(
            [InodeRecord(2, 1, records.INVALID)], (HandleRecord(fh, 2, 0) for fh in ids),
            handles=[HandleExtra(fh, 0, 0) for fh in ids],
        )  # fmt: skip

    def file(self):
        (self.share / "f").touch()
        return [InodeRecord(2, 1, records.PATH, 1, b"f")]

    def locks(self):
        locks = [PosixLock(2, 1, 3 * at, 3 * at, 1, 1) for at in range(self.count)]
        return self.state(self.file(), [HandleRecord(0, 2, os.O_RDWR)], locks=locks)

    def locks_without_a_handle(self):
        """Many handles, none of which may lend itself to the locks."""
        locks = [PosixLock(2, 1, 3 * at, 3 * at, 1, 1) for at in range(self.count)]
        return self.state(self.file(), (HandleRecord(fh, 2, 0) for fh in range(200)), locks=locks)

    def flocks(self):
        handles = (HandleRecord(fh, 2, os.O_RDWR) for fh in range(100))
        return self.state(self.file(), handles, flocks=[Flock(fh % 100, 1) for fh in range(self.count)])

    def mounts(self):
        return self.state([], mounts=dict.fromkeys(range(self.count), b"a"))

    def extents(self):
        file = Anonymous(2, 0o100600, size=1 << 30, extents=[(2 * at, b"x") for at in range(self.count)])
        return self.state([InodeRecord(2, 1, records.INVALID)], anonymous=[file])

    def xattrs(self):
        file = Anonymous(2, 0o100600, xattrs=[(b"user.%d" % at, b"") for at in range(self.count)])
        return self.state([InodeRecord(2, 1, records.INVALID)], anonymous=[file])

    def parked(self):
        chains = [ParkedChain(at, 2, [(at, 1, True)] * 3) for at in range(self.count)]
        return self.state([]) + parked.encode({1: RingState(next_avail=0, in_flight=chains)})


KINDS = [name for name in vars(Maker) if name not in ("backend", "state", "chain", "file") and name[0] != "_"]


@pytest.fixture
def loaded(tmp_path):
    backends = []

    def load(kind, count, measure):
        maker = Maker(tmp_path, count)
        data = getattr(maker, kind)()
        for other in backends:
            other.close()  # it may hold locks that this one is to take
        backend = maker.backend()
        backends.append(backend)
        return data, measure(lambda: backend.load_state(data))

    yield load
    for backend in backends:
        backend.close()


@pytest.mark.parametrize("kind", [*KINDS, "chain"])
def test_twice_as_many_take_at_most_twice_the_work(loaded, kind):
    few, many = (loaded(kind, count, work)[1] for count in (300, 600))
    assert many < 2.3 * few, f"{few} steps for 300, {many} for 600"


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_a_known_multiple_of_the_state(loaded, kind):
    count = 2000
    data, (peak, left) = loaded(kind, count, peak_bytes)
    few, _ = loaded(kind, count // 4, peak_bytes)[1]
    most, stays = MULTIPLES[kind]
    told = (
        f"{kind}: {len(data) / count:.1f} bytes each: {peak / len(data):.1f} times as many at most, "
        f"{left / len(data):.1f} stay; {(peak - left) / count:.0f} bytes each besides"
    )
    print(told)
    assert peak < 5 * few, f"{few} bytes for a quarter of them, {peak} for all"
    assert peak < most * len(data), told
    assert left < stays * len(data), told
    assert peak - left < ELEMENT_BYTES.get(kind, ELEMENT_MAX) * count, told


def test_what_stays_of_an_inode(loaded):
    """The same as of one that the guest looks up; that is what bounds the whole (STATE_INODES_MAX)."""
    few, many = (loaded("paths", count, peak_bytes)[1][1] for count in (2000, 6000))
    assert many - few < 4000 * INODE_BYTES


def test_what_stays_of_an_open_file():
    """Of one that is opened once, as nearly all are."""
    table, inodes = HandleTable(1 << 20), [Inode(1000 + at, NOWHERE, at, 0o100000) for at in range(4000)]
    made = [(1000 + at, inode) for at, inode in enumerate(inodes)]
    _, left = peak_bytes(lambda: [table.restore(fh, inode, 3, 2, 2, False) for fh, inode in made] and None)
    assert left < 4000 * HANDLE_BYTES, f"{left / 4000:.0f} bytes each"


def test_types_of_files_are_not_made_for_each():
    assert FILE_TYPES[0o100000] is FILE_TYPES[0o100000]
    assert len(FILE_TYPES) == 16


def test_losses_are_told_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("devices.virtio_fs.state.restore.REPORT_LINES_MAX", 10)
    maker = Maker(tmp_path, 25)
    backend = maker.backend()
    backend.load_state(maker.invalid())
    assert len(backend.report.losses) == 10
    assert backend.report.more_losses == 15
    backend.close()


def test_parked_requests_are_bounded_in_bytes(monkeypatch):
    rings = {1: RingState(next_avail=0, in_flight=[ParkedChain(0, 2, [(0, 1, True)] * 100)])}
    state = b"state" + parked.encode(rings)
    monkeypatch.setattr("devices.virtio_fs.parked.STATE_PARKED_MAX", 100)
    with pytest.raises(StateError, match="100 may travel"):
        parked.encode(rings)
    with pytest.raises(StreamError, match="100 are allowed"):
        parked.split(state, 2)


def test_a_file_in_too_many_pieces_does_not_travel(tmp_path, monkeypatch):
    """What saving writes, loading takes: the bound is the same on both sides."""
    monkeypatch.setattr("devices.virtio_fs.state.collect_content.STATE_EXTENTS_MAX", 3)
    path = tmp_path / "sparse"
    with open(path, "w+b") as file:
        for piece in range(4):
            file.seek(piece << 20)
            file.write(b"x")
        size = file.seek(0, os.SEEK_END)
        with pytest.raises(TooLarge, match="3 pieces"):
            _read_extents(LinuxFs(), file.fileno(), size, ContentBudget(), contents=True)
    assert limits.STATE_EXTENTS_MAX * 1024 == limits.UNLINKED_CONTENT_MAX
