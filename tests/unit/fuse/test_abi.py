"""Sizes, offsets and numbers against the kernel's own header, where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmsim.fuse import notify
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags, headers, init_flags, replies, requests
from vmsim.wire.layout import Layout

HEADER = Path("/usr/include/linux/fuse.h")
SINCE = {"STATX": 39}
"""Opcodes and layouts that an older header does not have, with the minor that brought them."""
SIZES = {"uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2}


def layouts():
    found = {}
    for module in (headers, requests, replies):
        for name, value in vars(module).items():
            if isinstance(value, Layout):
                found |= {name: value}
    for row in notify.NOTIFICATIONS:
        if row.layout is not None:
            found[f"NOTIFY_{row.name}"] = row.layout
    return found


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("IN_HEADER", 40), ("OUT_HEADER", 16), ("ATTR", 88), ("STATFS_OUT", 80), ("FILE_LOCK", 24),
        ("ENTRY_OUT", 128), ("ATTR_OUT", 104), ("FORGET_ONE", 16), ("BATCH_FORGET_IN", 8), ("DIRENT", 24),
        ("SETUPMAPPING_IN", 40), ("REMOVEMAPPING_IN", 4), ("REMOVEMAPPING_ONE", 16), ("SECCTX_HEADER", 8),
        ("SECCTX", 8), ("EXT_HEADER", 8), ("SUPP_GROUPS", 4), ("NOTIFY_POLL", 8), ("NOTIFY_INVAL_INODE", 24),
        ("NOTIFY_INVAL_ENTRY", 16), ("NOTIFY_DELETE", 24), ("NOTIFY_STORE", 24), ("NOTIFY_RETRIEVE", 32),
        ("STATX_OUT", 288), ("CREATE_OUT", 144), ("INIT_OUT", 64), ("INIT_IN", 64),
    ],
)  # fmt: skip
def test_sizes_of_the_reference(name, size):
    assert layouts()[name].size == size


def text():
    if not HEADER.exists():
        pytest.skip("linux/fuse.h is not installed")
    return HEADER.read_text()


def has(name):
    """Whether the header is new enough."""
    return SINCE.get(name, 0) <= int(re.search(r"#define FUSE_KERNEL_MINOR_VERSION (\d+)", text())[1])


def structs():
    """Structs of the header as lists of (type, name, count); nested structs are resolved."""
    found = {}
    for name, body in re.findall(r"struct (fuse_\w+|cuse_\w+) \{(.*?)\n\};", text(), re.DOTALL):
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        fields = []
        for kind, field, count in re.findall(r"([\w ]+?)\s+(\w+)(\[\w*\])?;", body):
            fields.append((kind.strip(), field, count))
        found[name] = fields
    return found


def flat(found, name):
    for kind, field, count in found[name]:
        if kind.startswith("struct "):
            yield from flat(found, kind.removeprefix("struct "))
        elif kind != "char":
            repeat = int(count[1:-1]) if count and count != "[]" else (0 if count else 1)
            yield field, SIZES[kind] * repeat


def header_names():
    skip = {"SUPP_GROUPS", "STATX_IN", "STATX_OUT", "CREATE_OUT", "INIT_COMPAT_IN", "SETXATTR_COMPAT_IN"}
    names = {name: "fuse_" + name.lower() for name in layouts() if name not in skip}
    names |= {"STATFS_OUT": "fuse_kstatfs", "CUSE_INIT_IN": "cuse_init_in", "CUSE_INIT_OUT": "cuse_init_out"}
    for row in notify.NOTIFICATIONS:
        names.pop(f"NOTIFY_{row.name}", None)
        if row.layout is not None:
            suffix = "poll_wakeup" if row.name == "POLL" else row.name.lower()
            names[f"NOTIFY_{row.name}"] = f"fuse_notify_{suffix}_out"
    return names


@pytest.mark.parametrize("name", sorted(header_names()))
def test_layout_is_that_of_the_header(name):
    if not has(name):
        pytest.skip(f"linux/fuse.h is older than minor {SINCE[name]}")
    found = structs()
    struct = header_names()[name]
    assert struct in found
    want = [(field, size) for field, size in flat(found, struct) if size]
    have = [(field.name, field.size) for field in layouts()[name].fields]
    assert sum(size for _, size in have) == sum(size for _, size in want)
    # Names may differ only where a later minor named what was padding.
    later = {"open_out": {"backing_id"}, "init_out": {"max_stack_depth", "unused"}}
    allowed = later.get(name.lower(), set())
    for (mine, my_size), (theirs, their_size) in zip(have, want, strict=False):
        if mine in allowed:
            continue
        assert (mine, my_size) == (theirs, their_size)


def test_opcode_numbers():
    numbers = dict(re.findall(r"\bFUSE_(\w+)\s*=\s*(\d+),", text()))
    for row in op.OPCODES:
        if has(row.name):
            assert int(numbers[row.name]) == row.number
    assert op.CUSE_INIT == 4096
    assert int(numbers["INIT_BSWAP_RESERVED"]) == op.FUSE_INIT_BSWAP_RESERVED
    for row in notify.NOTIFICATIONS:
        if f"NOTIFY_{row.name}" in numbers:
            assert int(numbers[f"NOTIFY_{row.name}"]) == row.code


def test_bits():
    bits = re.findall(r"#define FUSE_(\w+)\s+\(1(?:ULL|ull)? << (\d+)\)", text())
    assert len(bits) > 50
    rows = {row.name: row.bit for row in init_flags.INIT_FLAGS}
    checked = 0
    for name, bit in bits:
        if name in rows:
            assert rows[name] == int(bit)
        elif hasattr(flags, name):
            assert getattr(flags, name) == 1 << int(bit)
        else:
            continue
        checked += 1
    assert checked > 50


def test_init_flag_constants_are_the_rows():
    for row in init_flags.INIT_FLAGS:
        assert getattr(init_flags, row.name, row.mask) == row.mask
    assert [row.bit for row in init_flags.INIT_FLAGS] == list(range(41))
