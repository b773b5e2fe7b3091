from __future__ import annotations

import pytest

from devices.virtio_fs.state import negotiation
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.records import NegotiatedOpts
from vmsim.errors import StreamError, UsageError
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.init import InitOptions
from vmsim.fuse.negotiated import NegotiatedState


def options(**on) -> InitOptions:
    return InitOptions(**({"announce_submounts": False} | on))


def test_a_session_of_virtiofsd_with_default_options():
    opts = NegotiatedOpts(announce_submounts=True, sup_group_extension=True)
    state = negotiation.assumed(opts, options())
    assert state.flags == 0x4844F829 | 0x104 << 32
    assert (state.initialized, state.major, state.minor, state.max_write) == (True, 7, 38, 1 << 20)
    assert negotiation.options_of(state) == opts


def test_posix_acl_brings_the_longer_setxattr_along():
    """Defect D1 of virtiofsd: it forgets SETXATTR_EXT and parses 16 bytes as 8."""
    state = negotiation.assumed(NegotiatedOpts(posix_acl=True), options())
    assert state.has(flag.SETXATTR_EXT | flag.DONT_MASK | flag.POSIX_ACL)


def test_what_the_blob_cannot_say_comes_from_our_options():
    state = negotiation.assumed(NegotiatedOpts(), options(security_label=True, killpriv_v2=True))
    assert state.has(flag.SECURITY_CTX | flag.HANDLE_KILLPRIV_V2)
    assert not state.has(flag.SUBMOUNTS)


@pytest.mark.parametrize("name", ["writeback", "announce_submounts", "posix_acl"])
def test_an_option_that_is_missing_here_is_named(name):
    opts = NegotiatedOpts(**{name: True})
    negotiation.check_options(opts, options(**{name: True}))
    with pytest.raises(StreamError) as caught:
        negotiation.check_options(opts, options())
    assert caught.value.field == f"negotiated_opts.{name}"
    assert name.replace("_", "-") in caught.value.hint


def test_the_supplementary_group_extension_is_taken_over():
    negotiation.check_options(NegotiatedOpts(sup_group_extension=True), options())


def test_the_init_result_must_agree_with_the_blob():
    opts = NegotiatedOpts(writeback=True)
    negotiation.check_agreement(opts, NegotiatedState(True, flags=flag.WRITEBACK_CACHE))
    with pytest.raises(StreamError) as caught:
        negotiation.check_agreement(opts, NegotiatedState(True))
    assert caught.value.field == "extension.negotiated.flags"


def test_no_session_has_no_options():
    assert negotiation.options_of(NegotiatedState(False, flags=2**40 - 1)) == NegotiatedOpts()


@pytest.mark.parametrize(
    "bad",
    [
        StateOptions(mode="auto"),
        StateOptions(on_error="ignore"),
        StateOptions(mode="file-handles", verify_handles=True),
        StateOptions(mode="file-handles", confirm_paths=True),
    ],
)
def test_options_that_contradict_each_other(bad):
    with pytest.raises(UsageError):
        bad.check()


def test_options_that_go_together():
    both = StateOptions(verify_handles=True, confirm_paths=True)
    assert both.check() is both
