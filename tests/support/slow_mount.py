"""A FUSE mount whose server is here, and answers as long as it is told to: like a dead NFS server if not."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading

import pytest

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.replies import ATTR_OUT, ENTRY_OUT, OPEN_OUT

CONTENT = b"contents of a slow file"
LOOK_MS = 50
HANGS_S = 60
"""Then it answers after all: a test has failed, and whoever waits in the kernel could not even be killed."""

DIRECTORY, FILE = 0o040755, 0o100644


class SlowMount:
    """One file, ``x``, below ``path``. After ``hang()`` nothing is answered before ``answer()``."""

    def __init__(self, path):
        try:
            self._fd = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._path = os.fsencode(path)
        options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if self._libc.mount(b"slow", self._path, b"fuse", 0, options.encode()):
            os.close(self._fd)
            pytest.skip(f"this process may not mount: {os.strerror(ctypes.get_errno())}")
        os.set_blocking(self._fd, False)
        self.seen = []
        self._closing = False
        self._answers = threading.Event()
        self._answers.set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hang(self):
        self._answers.clear()

    def answer(self):
        self._answers.set()

    def close(self):
        """Whatever still waits for an answer fails."""
        self._libc.umount2(self._path, 3)  # MNT_FORCE and MNT_DETACH: whoever waits gets an error
        # The mount may live on in somebody's namespace: what ends its connection is that its server goes.
        self._closing = True
        self._answers.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "30 s after the unmount the server still serves"
        os.close(self._fd)

    def _serve(self):
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._closing:
            if not poll.poll(LOOK_MS):
                continue
            try:
                request = os.read(self._fd, 1 << 18)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            self.seen.append(opcode)
            self._answers.wait(HANGS_S)
            error, body = self._reply(opcode, node, request[40:])
            if opcode in (op.FORGET, op.BATCH_FORGET, op.INTERRUPT):
                continue
            try:
                os.write(self._fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
            except OSError:
                continue  # whoever asked has given up

    def _reply(self, opcode, node, body):
        attr = (node, len(CONTENT), 1, *[0] * 6, DIRECTORY if node == 1 else FILE, 1, 0, 0, 0, 4096, 0)
        if opcode == op.INIT:
            return 0, struct.pack("<IIIIHHIIHH8I", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, *[0] * 8)
        if opcode == op.LOOKUP:
            if body.rstrip(b"\0") != b"x":
                return errno.ENOENT, b""
            return 0, ENTRY_OUT.pack(2, 0, 0, 0, 0, 0, 2, *attr[1:9], FILE, *attr[10:])
        if opcode in (op.GETATTR, op.SETATTR):
            return 0, ATTR_OUT.pack(0, 0, 0, *attr)
        if opcode in (op.OPEN, op.OPENDIR):
            return 0, OPEN_OUT.pack(1, 1, 0)  # FOPEN_DIRECT_IO: each read gets here
        if opcode == op.READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return 0, CONTENT[offset : offset + size]
        if opcode == op.READDIR:
            _, offset = struct.unpack_from("<QQ", body)
            return 0, b"" if offset else struct.pack("<QQII", 2, 1, 1, 8) + b"x".ljust(8, b"\0")
        if opcode == op.STATFS:
            return 0, bytes(80)
        if opcode in (op.FSYNC, op.FSYNCDIR, op.FLUSH, op.RELEASE, op.RELEASEDIR, op.ACCESS, op.SYNCFS):
            return 0, b""
        return errno.ENOSYS, b""
