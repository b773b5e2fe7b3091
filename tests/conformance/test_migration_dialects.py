"""The two dialects of the back-end's state transfer, through whole machines.

Reference: vhost-user-and-qemu-migration 2.1 (RFC of 2023) and 4 (QEMU since 8.2).
"""

from __future__ import annotations

import errno
import os
import struct

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import Campaign, Kind, Life, Switch, faulty, make
from vmsim.errors import MigrationError
from vmsim.machine import Machine
from vmsim.machine.states import RUNNING
from vmsim.migration.channel import ChannelBase
from vmsim.migration.report import MigrationParameters
from vmsim.wrappers.faults import Fault

RFC = Kind("split", "rfc2023", "find-paths", None)
UPSTREAM = Kind("packed", "upstream", "find-paths", None)
MIB4 = 4 << 20
TAG = b"\x05\x15vhost-user-fs-backend" + bytes(4)


class Stream(ChannelBase):
    """A stream in memory, to be read or written once, in one direction."""

    duplex = False

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self._at = 0

    def write(self, data) -> None:
        self.data += data

    def read_some(self, limit):
        piece = bytes(self.data[self._at : self._at + min(limit, 1 << 20)])
        self._at += len(piece)
        return piece

    def close_write(self) -> None:
        pass

    def close(self) -> None:
        pass


def state_of(vm: Machine, dialect: str) -> tuple[bytes, int, int]:
    """The stream of a save, and where the back-end's framed state begins and ends in it."""
    stream = Stream()
    vm.send(stream, parameters=MigrationParameters(keep_running=True))
    data = bytes(stream.data)
    size = int(data[data.rindex(b'"back-end"') :].split(b'"size":')[1].split(b"}")[0])
    if dialect == "upstream":
        begin = data.rindex(TAG) + len(TAG)
    else:
        footer = data.rindex(b"\x7e", 0, data.rindex(b'{"configuration"') - 5)
        begin = footer - size
    return data, begin, begin + size


class Sized:
    """A guest with an unlinked file whose contents make the back-end's state as long as we like."""

    def __init__(self, share, kind: Kind, **changes) -> None:
        self.dialect = kind.dialect
        self.vm = make(share, kind, **changes)
        fs = self.vm.mount()
        self.fd = fs.open("/gone", os.O_RDWR | os.O_CREAT)
        fs.unlink("/gone")

    def bytes_now(self) -> int:
        data, begin, end = state_of(self.vm, self.dialect)
        assert self.dialect == "rfc2023"
        (length,) = struct.unpack_from(">Q", data, begin)
        assert end - begin == 8 + length
        return length

    def grow_to(self, size_bytes: int) -> None:
        """Make the state exactly so long."""
        fs = self.vm.mount()
        content = size_bytes - 4096
        for _ in range(8):
            fs.ftruncate(self.fd, 0)
            fs.pwrite(self.fd, b"\xa5" * content, 0)
            now = self.bytes_now()
            if now == size_bytes:
                return
            content += size_bytes - now
        raise AssertionError(f"no state of {size_bytes} bytes, but {now}")


def messages(plan: Switch, side: str) -> list[str]:
    return [step.operation for step in plan.steps if step.seam.startswith(f"vhost {side}")]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_rfc_states_around_multiples_of_four_mebibytes(tmp_path, times, more):
    """A multiple costs one FS_GET_STATE more, which returns 0; the destination has no such call."""
    plan = Switch()
    with no_leaks():
        sized = Sized(tmp_path, RFC, seams=faulty(plan, "source"))
        size = times * MIB4 + more
        sized.grow_to(size)
        plan.on = True
        vm2 = sized.vm.migrate(seams=faulty(plan, "destination"))
        assert messages(plan, "source").count("FS_GET_STATE") == times + (more >= 0)
        assert messages(plan, "destination").count("FS_SET_STATE") == -(-size // MIB4)
        assert messages(plan, "source").count("FS_SET_STATE_FD") == 2
        assert messages(plan, "destination").count("FS_SET_STATE_FD") == 2
        assert "SET_DEVICE_STATE_FD" not in {step.operation for step in plan.steps}
        assert vm2.mount().fstat(sized.fd).st_size > size - 4096
        vm2.close()
        sized.vm.close()


def test_rfc_the_empty_state_costs_one_call_in_each_direction(tmp_path):
    campaign = Campaign(tmp_path, RFC, options={"migration_empty_state": True})
    life = Life(campaign.vm)
    vm2 = campaign.migrate()
    told = [step.operation for step in campaign.plan.steps if step.operation.startswith("FS_")]
    assert told == [
        "FS_SET_STATE_FD", "FS_GET_STATE", "FS_SET_STATE_FD",
        "FS_SET_STATE_FD", "FS_SET_STATE", "FS_SET_STATE_FD",
    ]  # fmt: skip
    life.check(vm2)
    life.finish(vm2)
    vm2.close()
    campaign.vm.close()


@pytest.mark.parametrize(
    ("side", "message", "number", "says"),
    [
        ("source", "FS_SET_STATE_FD", 1, "Failed to share the state FD with the vhost-user-fs back end"),
        ("source", "FS_GET_STATE", 1, "FS_GET_STATE failed"),
        ("source", "FS_SET_STATE_FD", 2, "Failed to remove state FD from the vhost-user-fs back end"),
        ("destination", "FS_SET_STATE_FD", 1, "Failed to share the state FD with the vhost-user-fs back end"),
        ("destination", "FS_SET_STATE", 1, "FS_SET_STATE failed"),
        ("destination", "FS_SET_STATE_FD", 2, "perhaps it failed to deserialize/apply the state"),
    ],
)
def test_rfc_every_failing_branch_says_which_operation_on_which_device_and_why(
    tmp_path, side, message, number, says
):
    fault = Fault(f"vhost {side} *", message, number, "fail", errno=errno.ENOSPC)
    check_failure(tmp_path, RFC, fault, side, says)


@pytest.mark.parametrize(
    ("side", "message", "says"),
    [
        ("source", "SET_DEVICE_STATE_FD", "Failed to initiate state transfer"),
        ("source", "CHECK_DEVICE_STATE", "CHECK_DEVICE_STATE"),
        ("destination", "SET_DEVICE_STATE_FD", "Failed to initiate state transfer"),
        ("destination", "CHECK_DEVICE_STATE", "CHECK_DEVICE_STATE"),
    ],
)
def test_upstream_every_failing_branch_says_which_operation_on_which_device_and_why(
    tmp_path, side, message, says
):
    fault = Fault(f"vhost {side} *", message, 1, "fail", errno=errno.ENOSPC)
    check_failure(tmp_path, UPSTREAM, fault, side, says)


def check_failure(share, kind: Kind, fault: Fault, side: str, says: str) -> None:
    with no_leaks():
        campaign = Campaign(share, kind, [fault])
        life = Life(campaign.vm)
        assert campaign.migrate() is None
        error = campaign.error
        assert campaign.plan.injected
        doing = "saving" if side == "source" else "loading"
        assert f"Error {doing} back-end state of virtio-user-fs device /machine/peripheral/fs0" in str(error)
        assert '(tag: "vmsim")' in str(error)
        assert says in str(error)
        assert "No space left on device" in str(error)
        assert error.side == side
        assert error.errno == errno.ENOSPC
        assert campaign.vm.state == RUNNING
        life.check(campaign.vm)
        life.finish(campaign.vm)
        campaign.vm.close()
        del campaign, error


def boundaries(data: bytes, begin: int, end: int) -> list[int]:
    """Where the chunks of an upstream state begin, and where its terminator ends."""
    places, at = [], begin
    while at < end:
        places.append(at)
        at += 4 + struct.unpack_from(">I", data, at)[0]
    assert at == end
    return [*places, end]


def test_upstream_a_stream_cut_at_a_chunk_is_never_taken_for_a_whole_one(tmp_path):
    """QEMU reads the missing length as 0, and the back-end applies half a state. Here it hears of nothing."""
    share = tmp_path / "share"
    share.mkdir()
    with no_leaks():
        sized = Sized(share, UPSTREAM)
        sized.vm.mount().pwrite(sized.fd, b"\x5a" * (1 << 20), 0)
        data, begin, end = state_of(sized.vm, "upstream")
        places = boundaries(data, begin, end)
        assert len(places) >= 4
        for place in places:
            for cut in {place - 1, place, place + 1, place + 2, place + 3, place + 4}:
                plan = Switch()
                plan.on = True
                with pytest.raises(MigrationError) as caught:
                    Machine.receive(Stream(data[:cut]), share, seams=faulty(plan, "destination"))
                assert caught.value.side == "destination"
                if cut < end:
                    told = set(messages(plan, "destination"))
                    assert not {"SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"} & told
                del caught
        whole = Machine.receive(Stream(data), share)
        assert whole.mount().fstat(sized.fd).st_size == 1 << 20
        whole.close()
        sized.vm.close()


@pytest.mark.parametrize("kind", [RFC, UPSTREAM], ids=str)
def test_a_stream_cut_anywhere_never_makes_a_machine(tmp_path, kind):
    share = tmp_path / "share"
    share.mkdir()
    with no_leaks():
        vm = make(share, kind)
        Life(vm)
        data, begin, end = state_of(vm, kind.dialect)
        footer = data.rindex(b'{"configuration"') - 6  # the end-of-stream byte
        cuts = [*range(0, begin, 4099), *range(begin - 20, end + 8, 7), *range(end, footer, 3), footer]
        for cut in cuts:
            with pytest.raises(MigrationError) as caught:
                Machine.receive(Stream(data[:cut]), share)
            assert caught.value.step
            del caught
        vm.close()


def test_a_stream_of_one_dialect_is_read_by_a_destination_that_speaks_the_other(tmp_path):
    """The layout in the stream says which it is; the transport's dialect is the destination's own affair."""
    share = tmp_path / "share"
    share.mkdir()
    for kind in (RFC, UPSTREAM):
        vm = make(share, kind)
        life = Life(vm)
        data, _, _ = state_of(vm, kind.dialect)
        vm.close()
        with Machine.receive(Stream(data), share) as vm2:
            assert vm2.mount().pread(life.unlinked, 20, 0) == b"only here"
            assert vm2.config.dialect == kind.dialect
        for path in sorted(share.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_dropping_the_subsection_is_refused_with_what_to_change(tmp_path):
    """QEMU accepts it silently: the guest runs, and its session is gone."""
    share = tmp_path / "share"
    share.mkdir()
    with make(share, UPSTREAM) as vm:
        Life(vm)
        data, begin, end = state_of(vm, "upstream")
        without = data[: begin - len(TAG)] + data[end:]
        with pytest.raises(MigrationError, match="has no back-end state") as caught:
            Machine.receive(Stream(without), share)
        assert "migration=internal" in str(caught.value.hint)
        for broken, says in (
            (data.replace(TAG, TAG[:-1] + b"\x01"), "too new"),
            (data.replace(TAG, TAG.replace(b"back", b"bXck")), "bXckend"),
        ):
            with pytest.raises(MigrationError, match=says):
                Machine.receive(Stream(broken), share)
