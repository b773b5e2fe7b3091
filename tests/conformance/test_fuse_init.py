"""INIT: versions, flags, sizes."""

from __future__ import annotations

import errno

import pytest

from tests.support.fuse_rig import Rig
from vmsim.errors import StreamError, UsageError
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.abi.init_flags import INIT_FLAGS, LINUX_6_12_OFFER, flag_names
from vmsim.fuse.init import InitOptions, check_restored, negotiate, virtiofsd_opts, virtiofsd_state
from vmsim.fuse.negotiated import NegotiatedState


def test_default_options_answer_like_virtiofsd():
    """The reply that virtiofsd 1.13.2 gives to a Linux client, but for the minor."""
    body = Rig(init=False).init(readahead=131072).body
    assert (body.flags, body.flags2) == (0x4844F829, 0x104)
    assert (body.major, body.minor, body.max_readahead) == (7, 41, 131072)
    assert (body.max_background, body.congestion_threshold) == (65535, 49149)
    assert (body.max_write, body.max_pages, body.time_gran, body.map_alignment) == (1 << 20, 256, 1, 0)


@pytest.mark.parametrize("row", INIT_FLAGS, ids=lambda row: row.name)
def test_each_flag_is_granted_only_when_offered_and_asked_for(row):
    everything = (1 << 64) - 1
    if row.option in ("", "always"):
        granted = Rig(offer=everything).session.state.flags & row.mask
        assert bool(granted) == (row.option == "always")
    else:
        on = InitOptions(**{row.option: True})
        off = InitOptions(**{row.option: False})
        assert Rig(on, offer=everything).session.state.flags & row.mask
        assert not Rig(off, offer=everything).session.state.flags & row.mask
    if row.mask & InitOptions().offered():
        assert not Rig(offer=everything & ~row.mask).session.state.flags & row.mask


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({"posix_acl": True}, flag.POSIX_ACL), ({"posix_acl": True}, flag.DONT_MASK),
        ({"posix_acl": True}, flag.SETXATTR_EXT), ({"security_label": True}, flag.SECURITY_CTX),
    ],
)  # fmt: skip
def test_an_option_that_the_client_cannot_honour_fails(options, lacking):
    rig = Rig(InitOptions(**options), init=False)
    assert rig.init(LINUX_6_12_OFFER & ~lacking).error == errno.EPROTO
    assert rig.init().error == 0


@pytest.mark.parametrize("minor", [0, 5, 22, 26])
def test_old_minors(minor):
    assert Rig(init=False).init(minor=minor).error == errno.EPROTO


@pytest.mark.parametrize("major", [0, 6])
def test_old_majors(major):
    assert Rig(init=False).init(major=major).error == errno.EPROTO


@pytest.mark.parametrize(("room", "size"), [(80, 64), (79, 24), (40, 24), (39, 8), (24, 8)])
def test_a_later_major_is_told_ours(room, size):
    rig = Rig(init=False)
    request = client.encode(op.INIT, 3, 0, 0, 0, 0, (8, 0, 9, 0xFFFFFFFF, 9, b""))
    used, reply = rig.raw(request, room)
    assert used == 16 + size
    body = client.decode(op.INIT, bytes(reply[:used]), 3).body
    assert (body.major, body.minor) == (7, 41)
    assert not any(body[2:-1])
    assert not rig.session.state.initialized
    assert rig.raw(request, 23)[0] == 16


@pytest.mark.parametrize("minor", [27, 31, 36, 38, 41, 45])
def test_the_lower_minor_rules(minor):
    rig = Rig(init=False)
    assert rig.init(minor=minor).body.minor == 41
    assert rig.session.state.minor == min(minor, 41)
    assert Rig(InitOptions(minor=31), minor=minor).session.state.minor == min(minor, 31)


def test_a_client_without_flags2():
    rig = Rig(init=False)
    offer = LINUX_6_12_OFFER & ~flag.INIT_EXT
    answer = rig.call(op.INIT, 0, (7, 31, 0, offer & 0xFFFFFFFF), compat=True)
    assert answer.body.flags2 == 0
    assert rig.session.state.flags < 1 << 31
    assert rig.call(op.INIT, 0, (7, 31, 0, flag.INIT_EXT), compat=True).error == errno.EINVAL
    assert rig.init(offer).body.flags2 == 0


def test_without_max_pages_a_request_has_32_pages():
    state = Rig(offer=LINUX_6_12_OFFER & ~flag.MAX_PAGES).session.state
    assert (state.max_pages, state.max_write) == (32, 32 * 4096)


def test_before_minor_38_the_header_has_no_extension_length():
    options = InitOptions(security_label=True)
    label = client.encode_extensions((), [(b"security.x", b"v")])
    rig = Rig(options, minor=37)
    request = bytearray(client.encode(op.MKDIR, 9, 1, 0, 0, 0, (0, 0), (b"d",), extensions=label))
    request[36:38] = b"\xff\xff"
    assert rig.raw(request, 144)[0] == 144
    assert rig.fs.log[-1] == ((), ((b"security.x", b"v"),))
    rig = Rig(options, minor=38)
    assert rig.raw(request, 144)[0] == 16


def test_options_are_checked():
    for bad in ({"minor": 26}, {"minor": 42}, {"max_write": 100}, {"max_write": 2 << 20}):
        with pytest.raises(UsageError):
            InitOptions(**bad)


GOOD = Rig(minor=38).session.save()


@pytest.mark.parametrize(
    "change",
    [
        {"major": 8}, {"minor": 26}, {"minor": 42}, {"flags": -1}, {"flags": 1 << 64}, {"flags": 1 << 50},
        {"max_write": 0}, {"max_write": 2 << 20}, {"max_pages": 0}, {"max_background": 1 << 16},
        {"time_gran": 0}, {"map_alignment": 64}, {"interrupted": (1 << 64,)}, {"interrupted": ("x",)},
        {"interrupted": tuple(range(65))}, {"minor": "38"}, {"flags": flag.POSIX_LOCKS},
    ],
    ids=str,
)  # fmt: skip
def test_a_restored_state_is_checked_field_by_field(change):
    with pytest.raises(StreamError) as caught:
        check_restored(GOOD._replace(**change), InitOptions())
    assert next(iter(change)) in caught.value.field


def test_a_good_state_is_taken_as_it_is():
    assert check_restored(GOOD, InitOptions(readdirplus=False)) == GOOD
    assert check_restored(NegotiatedState(max_write=77), InitOptions()) == NegotiatedState()


def test_what_virtiofsd_negotiated_is_known_from_its_four_booleans():
    state = virtiofsd_state(
        InitOptions(), writeback=False, announce_submounts=True, posix_acl=False, supp_groups=True
    )
    assert state.flags == 0x4844F829 | 0x104 << 32
    assert virtiofsd_opts(state) == (False, True, False, True)
    state = virtiofsd_state(
        InitOptions(), writeback=True, announce_submounts=False, posix_acl=True, supp_groups=False
    )
    assert virtiofsd_opts(state) == (True, False, True, False)
    assert state.has(flag.SETXATTR_EXT | flag.DONT_MASK)


def test_flag_names():
    assert flag_names(flag.ASYNC_READ | flag.ALLOW_IDMAP | 1 << 60) == ["ASYNC_READ", "ALLOW_IDMAP", "bit 60"]


def test_a_cut_init():
    for size in range(16):
        with pytest.raises(OSError) as caught:
            negotiate((7).to_bytes(4, "little") + (41).to_bytes(4, "little") + bytes(8), InitOptions(), 63)
        assert caught.value.errno == errno.ENOMEM
        body = ((7).to_bytes(4, "little") + (41).to_bytes(4, "little") + bytes(8))[:size]
        with pytest.raises(OSError) as caught:
            negotiate(body, InitOptions(), 64)
        assert caught.value.errno == errno.EINVAL
