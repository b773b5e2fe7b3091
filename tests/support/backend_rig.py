"""A virtio-fs back-end without rings: requests go in as chains, replies come back at once or later."""

from __future__ import annotations

import os

from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER


class FakeChain:
    """Only what a device looks at."""

    def __init__(self, request, room):
        self.readable = [memoryview(request)]
        self.reply = bytearray(room)
        self.writable = [memoryview(self.reply)] if room else []


class Driver:
    """Sends requests to a back-end; ``done`` collects what was completed later."""

    def __init__(self, backend):
        self.backend = backend
        self.unique = 0
        self.done = []

    def chain(self, opcode, nodeid=1, args=(), names=(), size=0, data=b""):
        self.unique += 1
        request = client.encode(opcode, self.unique, nodeid, 0, 0, 7, args, names, data)
        return FakeChain(request, client.reply_room(opcode, size))

    def send(self, *args, ring=1, **kwargs):
        """The reply's body, or the chain if it waits."""
        chain = self.chain(*args, **kwargs)
        written = self.backend.handle(ring, chain, lambda chain, count: self.done.append((chain, count)))
        if written is None:
            return chain
        answer = client.decode(args[0], bytes(chain.reply[:written]), self.unique)
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.body

    def init(self):
        offer = LINUX_6_12_OFFER
        return self.send(op.INIT, 0, (7, 41, 1 << 17, offer & 0xFFFFFFFF, offer >> 32, b""))

    def lock(self, node, fh, owner, kind, *, wait=True, ring=1):
        opcode = op.SETLKW if wait else op.SETLK
        return self.send(opcode, node, (fh, owner, 0, 9, kind, 1, 0, 0), ring=ring)
