"""The parts that stand alone: allocator, local locks, INIT, page and dentry tables, nodes."""

from __future__ import annotations

import errno
import fcntl

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.costs import peak_bytes, work
from tests.support.guest_rig import make_memory
from vmsim.errors import StreamError, UsageError
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.replies import INIT_OUT
from vmsim.guest.config import GuestConfig
from vmsim.guest.driver.alloc import PageAllocator
from vmsim.guest.kernel import init
from vmsim.guest.kernel.dentries import RECORD_BYTES, DentryCache
from vmsim.guest.kernel.local_locks import END_MAX, acquire, conflict, release
from vmsim.guest.kernel.nodes import NodeTable
from vmsim.guest.kernel.page_cache import PageCache
from vmsim.guest.state import AllocatorState, Attr, KernelState, LocalLock
from vmsim.memory import PAGE_SIZE

RANGES = [(0x1000, 0x10000), (0x11000, 0x8000), (1 << 32, 0x20000)]


# -- the allocator


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40000)), max_size=60))
def test_allocations_never_overlap_and_come_back(steps):
    allocator = PageAllocator.over(list(RANGES))
    whole = allocator.free_bytes
    taken = []
    for take, size in steps:
        if take:
            gpa = allocator.allocate(size)
            if gpa is not None:
                rounded = -(-size // PAGE_SIZE) * PAGE_SIZE
                assert gpa % PAGE_SIZE == 0
                assert any(start <= gpa and gpa + rounded <= start + length for start, length in RANGES)
                assert all(gpa + rounded <= other or other + -(-more // PAGE_SIZE) * PAGE_SIZE <= gpa
                           for other, more in taken)  # fmt: skip
                assert allocator.is_allocated(gpa, rounded)
                taken.append((gpa, size))
        elif taken:
            allocator.free(*taken.pop(size % len(taken)))
        allocator.check()
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(allocator.state), type=type(allocator.state))
    again = PageAllocator(state)
    for gpa, size in taken:
        again.free(gpa, size)
    again.check()
    assert again.free_bytes == whole
    assert again.allocate(0x20000) == 1 << 32


def test_ranges_must_be_pages():
    for ranges in ([(1, PAGE_SIZE)], [(0, 100)], [(0, PAGE_SIZE), (0, PAGE_SIZE)]):
        with pytest.raises(UsageError):
            PageAllocator.over(ranges)


# -- locks


def lock(owner, kind, start, end, flock=False):
    return LocalLock(5, owner, owner, kind, start, end, flock)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]),
            st.integers(0, 20), st.integers(0, 20),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_locks_byte_by_byte(steps):
    """Against a model that knows the lock of every byte."""
    locks, model = [], [{} for _ in range(41)]
    for owner, kind, start, length in steps:
        wanted = lock(owner, kind, start, start + length)
        span = model[start : start + length + 1]
        if kind == fcntl.F_UNLCK:
            release(locks, wanted)
            for byte in span:
                byte.pop(owner, None)
            continue
        blocked = any(
            other != owner and fcntl.F_WRLCK in (kind, held) for byte in span for other, held in byte.items()
        )
        assert (conflict(locks, wanted) is not None) == blocked
        if not blocked:
            acquire(locks, wanted)
            for byte in span:
                byte[owner] = kind
    for at, byte in enumerate(model):
        held = {item.owner: item.kind for item in locks if item.start <= at <= item.end}
        assert held == byte


def test_flock_and_posix_locks_do_not_meet():
    locks = []
    acquire(locks, lock(1, fcntl.F_WRLCK, 0, END_MAX))
    assert conflict(locks, lock(2, fcntl.F_WRLCK, 0, END_MAX, True)) is None
    assert conflict(locks, LocalLock(6, 2, 2, fcntl.F_WRLCK, 0, 5)) is None


# -- INIT


def reply(**fields):
    empty = INIT_OUT.record(*[0] * 11, 0, b"")
    return INIT_OUT.pack_record(empty._replace(major=7, minor=41, max_write=1 << 20, **fields))


def test_init_offers_what_linux_offers():
    args, compat = init.init_arguments(GuestConfig(cache="writeback"))
    assert not compat
    assert args[:2] == (7, 41)
    assert args[3] | args[4] << 32 == init_flags.LINUX_6_12_OFFER
    args, compat = init.init_arguments(GuestConfig(fuse_minor=35, remote_locks=False))
    assert compat
    assert len(args) == 4
    assert not args[3] & (init_flags.POSIX_LOCKS | init_flags.WRITEBACK_CACHE | init_flags.INIT_EXT)


def test_init_results():
    config = GuestConfig()
    both = init_flags.INIT_EXT | init_flags.MAX_PAGES | init_flags.POSIX_LOCKS
    session = init.decode_init(config, reply(flags=both, flags2=1 << 2, max_pages=300, max_readahead=1 << 30))
    assert session.flags == both | init_flags.CREATE_SUPP_GROUP
    assert (session.max_pages, session.max_readahead) == (256, init.MAX_READAHEAD)
    session = init.decode_init(config, reply(flags=init_flags.WRITEBACK_CACHE, flags2=1 << 2, max_pages=300))
    assert session.flags == 0
    assert session.max_pages == 32
    assert init.decode_init(config, reply()[:8]).max_write == 4096
    for bad in (b"", b"\0" * 7, b"\6" + reply()[1:]):
        with pytest.raises(OSError, match="Protocol") as caught:
            init.decode_init(config, bad)
        assert caught.value.errno == errno.EPROTO


# -- tables in guest memory


def test_tables_are_found_again_in_memory():
    memory = make_memory([(0, 1 << 20)])
    allocator = PageAllocator.over([(PAGE_SIZE, (1 << 20) - PAGE_SIZE)])
    names = DentryCache(memory, DentryCache.create(memory, allocator, 4))
    for number in range(6):
        names.put(1, b"name%d" % number, 10 + number, 1000 + number)
    names.put(1, b"missing", 0, 5000)
    assert names.get(1, b"name5", 0) == 15
    assert names.get(1, b"name5", 2000) is None
    assert names.get(1, b"missing", 0) == 0
    assert names.get(1, b"name0", 0) is None
    again = DentryCache(memory, names.state)
    assert sorted(again.references()) == sorted(names.references())
    assert again.get(1, b"missing", 0) == 0
    pages = PageCache(memory, PageCache.create(memory, allocator, 4))
    frames = [pages.reserve() for _ in range(3)]
    for index, frame in enumerate(frames[:2]):
        pages.enter(frame, 7, index)
    pages.set_dirty(frames[1])
    same = PageCache(memory, pages.state)
    assert same.find(7, 0) == frames[0]
    assert same.dirty_pages(7) == [1]
    assert same.oldest_dirty() == 7
    same.begin_write(frames[1])
    assert same.oldest_dirty() is None
    assert same.writing(7)
    late = PageCache(memory, pages.state)
    late.abandon(late.gpa(0), 4 * PAGE_SIZE)
    assert late.dirty_pages(7) == [1]
    late.drop(7)
    assert sorted(late.reserve() for _ in range(4)) == [0, 1, 2, 3]
    assert late.reserve() is None


def heap(size=1 << 26):
    memory = make_memory([(0, size)])
    return memory, PageAllocator.over([(PAGE_SIZE, size - PAGE_SIZE)])


@given(st.lists(st.tuples(
    st.sampled_from(["put", "put", "put", "remove", "get", "clear", "again", "older"]),
    st.integers(1, 3), st.sampled_from([b"a", b"b", b"c" * 255, b"d", b"e"]), st.integers(0, 4),
), max_size=60))  # fmt: skip
def test_names_like_a_dict_and_in_memory_too(steps):
    """Against a dict that forgets the least recently used; every table is the same when it is read again."""
    memory, allocator = heap(1 << 20)
    names, model = DentryCache(memory, DentryCache.create(memory, allocator, 5)), {}
    for what, parent, name, node in steps:
        key = parent, name
        if what == "put":
            gone = [(parent, model.pop(key))] if key in model else []
            if len(model) == 5:
                oldest = next(iter(model))
                gone.append((oldest[0], model.pop(oldest)))
            assert names.put(*key, node, 1) == gone
            model[key] = node
        elif what == "remove":
            assert names.remove(*key) == ([(parent, model.pop(key))] if key in model else [])
        elif what == "get":
            assert names.get(*key, 0) == model.get(key)
            if key in model:
                model[key] = model.pop(key)
        elif what == "clear":
            assert names.clear() == [(parent, node) for (parent, _), node in model.items()]
            model.clear()
        else:
            state = msgspec.structs.replace(names.state)
            if what == "older":  # which has its records anywhere, and none behind them
                table = memory.view(state.table_gpa, 5 * RECORD_BYTES)
                table[len(model) * RECORD_BYTES :] = bytes((5 - len(model)) * RECORD_BYTES)
                first, last = bytes(table[:RECORD_BYTES]), bytes(table[-RECORD_BYTES:])
                table[:RECORD_BYTES], table[-RECORD_BYTES:] = last, first
                state.used = -1
            names = DentryCache(memory, state)
            assert names._index.keys() == model.keys()
            model = {key: model[key] for key in names._index}  # memory does not say which was used last
        assert len(names) == names.state.used == len(model)
        assert names.references() == {*model.values(), *(parent for parent, _ in model)} - {0}


@pytest.mark.parametrize("used", [-2, 4, 5, 1 << 40])
def test_a_number_of_names_that_cannot_be_is_refused(used):
    memory, allocator = heap(1 << 20)
    names = DentryCache(memory, DentryCache.create(memory, allocator, 4))
    for number in range(3):
        names.put(1, b"%d" % number, 2, 3)
    state = msgspec.structs.replace(names.state, used=used)
    if used == -2:
        assert len(DentryCache(memory, state)) == 3
    else:
        with pytest.raises(StreamError, match="dentr"):
            DentryCache(memory, state)


def names_of(entries):
    memory, allocator = heap()
    names = DentryCache(memory, DentryCache.create(memory, allocator, entries))
    for number in range(100):
        names.put(1, b"%d" % number, 2, 3)
    return lambda: DentryCache(memory, names.state).references()


def pages_of(entries):
    memory, allocator = heap()
    pages = PageCache(memory, PageCache.create(memory, allocator, entries))
    for number in range(100):
        frame = pages.reserve()
        pages.enter(frame, 7, number)
    return lambda: PageCache(memory, pages.state)


@pytest.mark.parametrize("make", [names_of, pages_of])
def test_a_large_table_with_little_in_it_is_read_as_a_small_one(make):
    assert work(make(1 << 13)) < 1.1 * work(make(1 << 10))


def test_nothing_is_touched_of_a_table_that_is_not_used():
    few, many = (peak_bytes(names_of(entries))[0] for entries in (1 << 10, 1 << 17))
    assert many < few + 10_000


# -- nodes


def attr(mode=0o100644):
    return Attr(5, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def test_lookups_are_owed_once_the_last_reference_goes():
    state = KernelState(1, GuestConfig(), PageAllocator.over([(0, PAGE_SIZE)]).state)
    nodes = NodeTable(state)
    nodes.add_root(attr(0o040755))
    directory, _ = nodes.learn(2, 0, attr(0o040755))
    nodes.place(directory, 1, b"d")
    below, _ = nodes.learn(3, 0, attr(0o040755))
    nodes.place(below, 2, b"e")
    nodes.learn(2, 0, attr(0o040755))
    nodes.drop(2)
    nodes.drop(2)
    assert not state.forgets
    assert nodes.path(3) == b"/d/e"
    with pytest.raises(OSError, match="Too many levels"):
        nodes.place(directory, 3, b"loop")
    nodes.drop(3)
    assert state.forgets == [(3, 1), (2, 2)]
    assert list(nodes.nodes) == [1]


def test_a_server_that_contradicts_itself_is_not_believed():
    state = KernelState(1, GuestConfig(), PageAllocator.over([(0, PAGE_SIZE)]).state)
    nodes = NodeTable(state)
    nodes.add_root(attr(0o040755))
    nodes.learn(2, 0, attr())
    for nodeid, generation, mode in ((1, 0, 0o040755), (2, 1, 0o100644), (2, 0, 0o040755)):
        with pytest.raises(OSError, match="Input/output"):
            nodes.learn(nodeid, generation, attr(mode))


def test_a_hundred_thousand_runs_are_checked_one_by_one():
    """A hostile state has as many ranges and free runs as fit into it: the check must stay linear."""
    ranges = [(at * 2 * PAGE_SIZE, PAGE_SIZE) for at in range(1, 100_000)]
    allocator = PageAllocator(AllocatorState(ranges, ranges[::2], {PAGE_SIZE: [ranges[1][0]]}))
    runs = allocator.check()
    assert len(runs) == 50_001
    for at, (gpa, size) in enumerate(ranges):
        assert allocator.is_allocated(gpa, size, runs) == (at % 2 == 1 and at != 1)
        assert not allocator.is_allocated(gpa, 2 * size, runs)
    assert not allocator.is_allocated(0, PAGE_SIZE, runs)
