"""Both ways to transfer a back-end's state, from stream to stream, and what goes wrong on the way."""

import errno
import os

import pytest

from tests.support.leaks import Held
from tests.support.vhost_rig import EchoDevice, Rig
from vmsim.errors import StreamError, StreamTruncated
from vmsim.host.shm import SharedMemory
from vmsim.vhost import payloads as p
from vmsim.vhost.backend import BackendOptions
from vmsim.vhost.dialects import dialect_by_name
from vmsim.vhost.dialects.base import StateTransferError
from vmsim.vhost.messages import MessageError, Reply, Request

MIB = 1 << 20
SIZES = [0, 1, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB]
BOTH = pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def __call__(self, size):
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        if len(piece) < size:
            raise StreamTruncated("the stream ends", offset=self.at)
        return piece


def blob(size):
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def save(rig):
    return b"".join(rig.device.frontend.save_backend_state())


def load(rig, stream):
    rig.device.frontend.load_backend_state(rig.dialect.read_state(Reader(stream)))


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_any_size_arrives(dialect, size):
    before = Held()
    with Rig(dialect) as source, Rig(dialect) as destination:
        source.echo.state = blob(size)
        stream = save(source)
        load(destination, stream)
        assert destination.echo.loaded == [blob(size)]
        assert save(source) == stream, "saving twice gives the same"
    assert before.more() == []


def test_upstream_stream_layout():
    with Rig() as rig:
        rig.echo.state = b"abc"
        assert save(rig) == b"\0\0\0\3abc\0\0\0\0"
        rig.echo.state = b""
        assert save(rig) == b"\0\0\0\0"


def test_rfc_stream_layout():
    with Rig("rfc2023") as rig:
        rig.echo.state = b"abc"
        assert save(rig) == b"\0\0\0\0\0\0\0\3abc"


@pytest.mark.parametrize(
    ("size", "calls"), [(0, 1), (1, 1), (4 * MIB - 1, 1), (4 * MIB, 2), (4 * MIB + 1, 2), (8 * MIB, 3)]
)
def test_rfc_loop_of_the_source(size, calls):
    """An exact multiple of 4 MiB costs one more FS_GET_STATE; an empty state costs one."""
    with Rig("rfc2023") as rig:
        rig.echo.state = blob(size)
        rig.transport.log.clear()
        save(rig)
        assert rig.transport.names == ["FS_SET_STATE_FD", *["FS_GET_STATE"] * calls, "FS_SET_STATE_FD"]
        attach, detach = rig.transport.log[0], rig.transport.log[-2]
        assert attach[2:5] == (0x9, 8, 1)
        assert attach[5] == "0000400000000000"
        assert detach[2:] == (0x9, 8, 0, "0" * 16)
        gets = [entry for entry in rig.transport.log if entry[1] == "FS_GET_STATE" and entry[0] == "FE>BE"]
        assert {entry[2] for entry in gets} == {0x1}


@pytest.mark.parametrize(("size", "calls"), [(0, 1), (1, 1), (4 * MIB, 1), (4 * MIB + 1, 2), (8 * MIB, 2)])
def test_rfc_loop_of_the_destination(size, calls):
    with Rig("rfc2023") as rig:
        rig.transport.log.clear()
        rig.device.frontend.load_backend_state(blob(size))
        assert rig.transport.names == ["FS_SET_STATE_FD", *["FS_SET_STATE"] * calls, "FS_SET_STATE_FD"]
        assert rig.echo.loaded == [blob(size)]


def test_rfc_buffer_is_a_sealed_memfd(monkeypatch):
    import fcntl

    seen = []
    with Rig("rfc2023") as rig:
        real = rig.host.map

        def spy(fd, size, offset):
            seen.append((os.readlink(f"/proc/self/fd/{fd}"), size, fcntl.fcntl(fd, fcntl.F_GET_SEALS)))
            return real(fd, size, offset)

        monkeypatch.setattr(rig.host, "map", spy)
        save(rig)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    assert seen == [("/memfd:vhost-fs-state (deleted)", 4 * MIB, seals)]


@BOTH
@pytest.mark.parametrize("cut", ["every byte"])
def test_a_cut_stream_never_loads(dialect, cut):
    """The truncation trap: at no length short of the whole does a destination believe anything."""
    with Rig(dialect) as source:
        source.echo.state = blob(40)
        stream = save(source)
    for length in range(len(stream)):
        with Rig(dialect) as destination:
            destination.transport.log.clear()
            with pytest.raises(StreamTruncated):
                load(destination, stream[:length])
            assert destination.transport.names == [], "the back-end never heard of it"
            assert destination.echo.loaded == []


@BOTH
def test_a_length_is_not_believed_before_the_bytes_are_there(dialect):
    huge = b"\xff" * 4 if dialect == "upstream" else b"\xff" * 8
    with pytest.raises(StreamError, match="1073741824"):
        dialect_by_name(dialect).read_state(Reader(huge + bytes(100)))


def test_upstream_takes_any_chunking():
    read = dialect_by_name("upstream").read_state
    assert read(Reader(b"\0\0\0\1a\0\0\0\2bc\0\0\0\0")) == b"abc"


@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
def test_the_back_end_may_bring_its_own_channel(size):
    before = Held()
    options = BackendOptions(own_state_channel=True)
    with Rig(backend=options) as source, Rig(backend=options) as destination:
        source.echo.state = blob(size)
        load(destination, save(source))
        assert destination.echo.loaded == [blob(size)]
        (reply,) = [entry for entry in source.transport.log if entry[:2] == ("BE>FE", "SET_DEVICE_STATE_FD")]
        assert reply[4:] == (1, "0" * 16)
    assert before.more() == []


@BOTH
def test_a_back_end_that_cannot_save_says_so(dialect):
    before = Held()
    with Rig(dialect) as rig:
        rig.echo.refuse_save = True
        with pytest.raises(StateTransferError) as caught:
            save(rig)
        expected = {
            "upstream": "Back-end failed to process its internal state",
            "rfc2023": "FS_GET_STATE failed: the back-end refused",
        }
        assert caught.value.message == expected[dialect]
        assert "does not save" in str(rig.backend.transfer.failure)
        rig.echo.refuse_save = False
        assert save(rig), "the failure leaves nothing behind"
    assert before.more() == []


@BOTH
def test_a_back_end_that_cannot_load_says_so(dialect):
    with Rig(dialect) as rig:
        rig.echo.refuse_load = True
        with pytest.raises(StateTransferError) as caught:
            rig.device.frontend.load_backend_state(b"state")
        expected = {
            "upstream": "Back-end failed to process its internal state",
            "rfc2023": "Failed to remove state FD from the vhost-user-fs back end -- perhaps it failed to "
            "deserialize/apply the state: "
            "/machine/peripheral/fs0: FS_SET_STATE_FD: the back-end refused it with 5",
        }
        assert caught.value.message == expected[dialect]
        assert caught.value.errno == errno.EIO
        assert rig.echo.loaded == []


@BOTH
def test_rings_must_be_stopped_on_both_sides(dialect):
    with Rig(dialect) as rig:
        rig.boot()
        with pytest.raises(StateTransferError, match="rings run") as caught:
            save(rig)
        assert caught.value.errno == errno.EBUSY
        memfd = SharedMemory("x", 4 * MIB)
        name, payload, answer = {
            "upstream": ("SET_DEVICE_STATE_FD", p.DeviceState(0, 0), 0x101),
            "rfc2023": ("FS_SET_STATE_FD", p.Number(4 * MIB), errno.EBUSY),
        }[dialect]
        request = Request(rig.dialect.messages[name], payload, (os.dup(memfd.fd),), True)
        assert rig.backend.handle(request) == Reply(p.Number(answer))
        memfd.close()
        assert rig.driver.call(b"still alive") == b"evila llits"


@pytest.mark.parametrize("payload", [p.DeviceState(2, 0), p.DeviceState(0, 1), p.DeviceState(1, 7)])
def test_unknown_direction_or_phase(payload):
    with Rig() as rig:
        read_end, write_end = os.pipe()
        request = Request(rig.dialect.messages["SET_DEVICE_STATE_FD"], payload, (write_end,))
        assert rig.transport.inner.request(request) == Reply(p.Number(0x101))
        os.close(write_end)
        assert os.read(read_end, 1) == b"", "the back-end closed its copy"
        os.close(read_end)


def test_check_without_a_transfer_and_with_an_unfinished_one():
    with Rig() as rig:
        check = Request(rig.dialect.messages["CHECK_DEVICE_STATE"])
        assert rig.transport.request(check) == Reply(p.Number(1))
        read_end, write_end = os.pipe()
        begin = Request(rig.dialect.messages["SET_DEVICE_STATE_FD"], p.DeviceState(1, 0), (read_end,))
        assert rig.transport.request(begin) == Reply(p.Number(0x100))
        os.write(write_end, b"half a state")
        assert rig.transport.request(check) == Reply(p.Number(1))
        assert rig.echo.loaded == []
        os.close(read_end)
        os.close(write_end)


def test_a_load_without_check_is_never_applied():
    """The writer's end closes, and instead of CHECK the device is started: the state is dropped."""
    with Rig() as rig:
        read_end, write_end = os.pipe()
        begin = Request(rig.dialect.messages["SET_DEVICE_STATE_FD"], p.DeviceState(1, 0), (read_end,))
        rig.transport.request(begin)
        os.write(write_end, b"state")
        os.close(write_end)
        os.close(read_end)
        rig.backend.progress()
        rig.boot()
        assert rig.transport.request(Request(rig.dialect.messages["CHECK_DEVICE_STATE"])).payload.value == 1
        assert rig.echo.loaded == []


class Rfc:
    """Raw messages of the RFC dialect to one back-end."""

    def __init__(self, rig):
        self.rig = rig
        self.shm = SharedMemory("vhost-fs-state", 4096)

    def __call__(self, name, payload, fds=()):
        row = self.rig.dialect.messages[name]
        return self.rig.transport.request(Request(row, payload, fds, name != "FS_GET_STATE"))

    def attach(self):
        return self("FS_SET_STATE_FD", p.Number(4096), (self.shm.fd,)).payload.value

    def detach(self):
        return self("FS_SET_STATE_FD", p.Number(0)).payload.value

    def set(self, offset, size):
        return self("FS_SET_STATE", p.StateChunk(offset, size)).payload.value

    def get(self, offset, size):
        return self("FS_GET_STATE", p.StateChunk(offset, size)).payload.size_bytes


@pytest.fixture
def rfc():
    with Rig("rfc2023") as rig:
        raw = Rfc(rig)
        yield raw
        raw.shm.close()


REFUSED = (1 << 64) - 1


@pytest.mark.parametrize(
    "steps",
    [
        [("set", 0, 1)],
        [("get", 0, 1)],
        [("detach",)],
        [("attach",), ("attach",)],
        [("attach",), ("set", 1, 1)],
        [("attach",), ("set", 0, 10), ("set", 9, 1)],
        [("attach",), ("set", 0, 10), ("set", 11, 1)],
        [("attach",), ("set", 0, 10), ("set", 0, 10)],
        [("attach",), ("set", 0, 4097)],
        [("attach",), ("get", 0, 4097)],
        [("attach",), ("get", 25, 1)],
        [("attach",), ("get", 0, 10), ("set", 0, 1)],
        [("attach",), ("set", 0, 1), ("get", 0, 1)],
    ],
    ids=str,
)
def test_rfc_what_is_refused(rfc, steps):
    """Holes, overlaps, wrong order, more than the buffer holds: refused, and nothing is applied."""
    *good, bad = steps
    for name, *args in good:
        assert getattr(rfc, name)(*args) != REFUSED
    name, *args = bad
    answer = getattr(rfc, name)(*args)
    assert answer == (REFUSED if name == "get" else answer) != 0
    rfc.rig.backend.close()
    assert rfc.rig.echo.loaded == []


def test_rfc_after_a_refused_piece_nothing_is_applied(rfc):
    assert rfc.attach() == 0
    assert rfc.set(0, 10) == 0
    assert rfc.set(100, 10) == errno.EINVAL
    assert rfc.detach() == errno.EIO
    assert rfc.rig.echo.loaded == []
    assert rfc.attach() == 0, "and a new transfer may begin"
    assert rfc.set(0, 0) == 0
    assert rfc.detach() == 0
    assert rfc.rig.echo.loaded == [b""]


def test_rfc_a_buffer_larger_than_its_file(rfc):
    answer = rfc("FS_SET_STATE_FD", p.Number(8192), (rfc.shm.fd,))
    assert answer.payload.value == errno.EINVAL


def test_rfc_a_total_that_changes_is_an_error(monkeypatch):
    with Rig("rfc2023") as rig:
        rig.echo.state = blob(5 * MIB)
        real = rig.transport.request

        def lie(request):
            reply = real(request)
            if request.row.name == "FS_GET_STATE" and request.payload.state_offset:
                return Reply(p.StateChunk(request.payload.state_offset, 7))
            return reply

        monkeypatch.setattr(rig.transport, "request", lie)
        with pytest.raises(StateTransferError, match="7 bytes remain") as caught:
            save(rig)
        assert caught.value.errno == errno.EPROTO
        assert rig.transport.names[-1] == "FS_SET_STATE_FD", "detached all the same"


@pytest.mark.parametrize(
    ("reply", "fds", "match"),
    [
        (0x101, 0, "did not accept"),
        (0x001, 1, "did not accept"),
        (0x100, 1, "denied it"),
        (0x000, 0, "Failed to get back-end-provided"),
    ],
)
def test_upstream_bad_answers_leak_nothing(monkeypatch, reply, fds, match):
    with Rig() as rig:
        before = Held()

        def answer(request):
            return Reply(p.Number(reply), tuple(os.open("/dev/null", os.O_RDWR) for _ in range(fds)))

        monkeypatch.setattr(rig.transport, "request", answer)
        with pytest.raises(StateTransferError, match=f"Failed to initiate state transfer: .*{match}"):
            save(rig)
        assert before.more() == []


def test_upstream_needs_its_protocol_feature():
    without = BackendOptions(protocol_features=0x2A42B & ~(1 << 19) & ~(1 << 17))
    with Rig(backend=without) as rig:
        assert not rig.device.frontend.supports_device_state
        with pytest.raises(StateTransferError, match="does not support migration state transfer") as caught:
            save(rig)
        assert caught.value.errno == errno.ENOTSUP
        with pytest.raises(MessageError, match="without protocol feature DEVICE_STATE"):
            rig.transport.request(Request(rig.dialect.messages["CHECK_DEVICE_STATE"]))


def test_a_reader_that_goes_away_is_a_typed_error():
    with Rig() as rig:
        rig.echo.state = blob(3 * MIB)
        pieces = rig.device.frontend.save_backend_state()
        next(pieces)
        before = Held()
        pieces.close()
        assert [what for _, what in before.gone() if what.startswith("pipe:")]
        assert rig.backend.progress(), "the back-end notices"
        assert "EPIPE" in str(rig.backend.transfer.failure)
        assert save(rig)[4:14] == b"0123456789"


def test_echo_device_is_a_back_end_device():
    from vmsim.vhost.backend import BackendDevice

    device: BackendDevice = EchoDevice()
    assert device.queue_count == 2
