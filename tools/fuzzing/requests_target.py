"""FUSE requests, in pieces, into a whole back-end without rings; waiting, interrupts, parking and saving."""

from __future__ import annotations

import gc

from engine import Finding
from fuse_requests import init_request, request, seeds
from reading import Reader
from shares import Share

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.options import FsOptions
from vmsim.errors import InternalFault, VmsimError
from vmsim.host.fs import LinuxFs

OPTIONS = (
    FsOptions(), FsOptions(posix_acl=True, xattr=True), FsOptions(writeback=True, cache="always"),
    FsOptions(inode_file_handles="prefer", inode_fds=16), FsOptions(readonly=True), FsOptions(inode_fds=16),
)  # fmt: skip
REQUESTS_MAX = 200


class Pieces:
    """As much of a chain as a device looks at."""

    def __init__(self, reader: Reader, data: bytes, room: int) -> None:
        self.readable = reader.cuts(memoryview(data)) or [memoryview(b"")]
        self.reply = memoryview(bytearray(room))
        self.writable = reader.cuts(self.reply) if room else []


class Requests:
    """Target ``fuse``."""

    name = "fuse"
    watched = ("vmsim.fuse", "devices.virtio_fs")

    def __init__(self) -> None:
        self._share = Share()

    def close(self) -> None:
        """Remove the share."""
        self._share.close()

    def seeds(self) -> list[bytes]:
        """Requests of each kind."""
        return [bytes(4) + one for one in seeds()]

    def run(self, data: bytes) -> int:
        """A session's requests."""
        reader = Reader(data)
        backend = VirtioFsBackend(LinuxFs(), self._share.renew(), reader.choice(OPTIONS))
        done = 0
        try:
            if reader.u8() < 250:
                self._serve(backend, reader, init_request(reader, 1), 200)
            while reader.left and done < REQUESTS_MAX:
                done += 1
                what = reader.u8()
                if what >= 248:
                    self._beside(backend, what)
                else:
                    self._serve(backend, reader, *request(reader, 2 * done))
        finally:
            backend.close()
        if not self._share.path.endswith("00"):
            return done
        gc.collect()
        return done

    @staticmethod
    def _serve(backend: VirtioFsBackend, reader: Reader, data: bytes, room: int) -> None:
        chain = Pieces(reader, data, room)

        def check(written: int) -> None:
            if not 0 <= written <= room:
                raise Finding(f"{written} bytes written into {room}")
            if written and int.from_bytes(chain.reply[:4], "little") != written:
                raise Finding(f"a reply of {written} bytes says {bytes(chain.reply[:16]).hex()}")

        written = backend.handle(1, chain, lambda _, count: check(count))  # type: ignore[arg-type]
        if written is not None:
            check(written)

    @staticmethod
    def _beside(backend: VirtioFsBackend, what: int) -> None:
        try:
            if what == 248:
                backend.idle()
            elif what == 249:
                backend.parked(1)
            elif what == 250:
                backend.log_started()
            elif what == 251:
                backend.log_stopped()
            elif what == 252:
                b"".join(backend.save_state())
            elif what == 253:
                backend.resume_parked(1)
            elif what == 254:
                backend.load_state(b"".join(backend.save_state()))
            else:
                backend.look()
        except InternalFault:
            raise
        except (VmsimError, OSError):
            pass
