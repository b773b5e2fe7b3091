"""A back-end that does something wrong, as its second argument says; for the outcomes of cases.

With a third argument, a file to note it in, it does so once, and then never again.
It answers GET_FEATURES, GET_PROTOCOL_FEATURES and whatever else asks for a number; then ...
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

HEADER = struct.Struct("=III")
ANSWERS = {1: 1 << 32 | 1 << 30, 15: 1 << 3 | 1 << 0, 17: 2}
HAS_REPLY = set(ANSWERS)


def main() -> None:
    path, what, *first = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    connection, _ = listener.accept()
    while True:
        head = connection.recv(12, socket.MSG_WAITALL)
        if len(head) < 12:
            return
        request, flags, size = HEADER.unpack(head)
        connection.recv(size, socket.MSG_WAITALL)
        if request == 8:
            if first and os.path.exists(first[0]):
                what = "nothing"
            elif first:
                os.close(os.open(first[0], os.O_CREAT))
            misbehave(what, connection)
        if request in HAS_REPLY or flags & 8:
            reply = 13 if what == "flags" and request == 8 else 5
            connection.sendall(HEADER.pack(request, reply, 8) + struct.pack("=Q", ANSWERS.get(request, 0)))


def misbehave(what: str, connection: socket.socket) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "closes":
        connection.close()
        time.sleep(60)
    if what == "silent":
        time.sleep(60)
    if what == "panics":
        print("thread 'vring_worker' panicked at src/main.rs:1:2:", file=sys.stderr, flush=True)
        time.sleep(60)


main()
