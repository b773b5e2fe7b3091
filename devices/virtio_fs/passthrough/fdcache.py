"""A bounded number of O_PATH descriptors for an unbounded number of inodes.

The inodes that hold one stand in a queue. The oldest loses its descriptor, unless it was used since it came
last to the front (``HOT``), must keep it at this moment (``PINNED``), or could not be found again without it.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .inodes import COLD, HOT, PINNED, Inode


@contextmanager
def pinned(inode: Inode) -> Iterator[None]:
    """Keep the descriptor of ``inode`` during the block."""
    before = inode.hot
    inode.hot |= PINNED
    try:
        yield
    finally:
        inode.hot &= before | HOT


class FdCache:
    """Descriptors of inodes, at most ``limit``.

    ``may_drop`` is asked before an inode loses its descriptor and records what finds it again; ``close``
    closes one.
    """

    __slots__ = ("_close", "_may_drop", "_queue", "limit")

    def __init__(self, limit: int, may_drop: Callable[[Inode], bool], close: Callable[[int], None]) -> None:
        self.limit = limit
        self._may_drop = may_drop
        self._close = close
        self._queue: OrderedDict[int, Inode] = OrderedDict()

    def close_with(self, close: Callable[[int], None]) -> None:
        """Close descriptors with this from now on."""
        self._close = close

    def __len__(self) -> int:
        return len(self._queue)

    def insert(self, inode: Inode, fd: int) -> None:
        """Give ``inode`` its descriptor; ENFILE (and ``fd`` closed) when nobody else can do without."""
        if inode.fd >= 0:  # another request has found it meanwhile
            self._close(fd)
            inode.hot |= HOT
            return
        if len(self._queue) >= self.limit and not self.evict():
            self._close(fd)
            raise OSError(errno.ENFILE, "all descriptors are in use")
        inode.fd = fd
        inode.hot |= HOT
        self._queue[inode.id] = inode

    def evict(self) -> bool:
        """Take one descriptor away; False if everybody needs theirs."""
        queue = self._queue
        # Twice round: the first may only cool the hot ones down.
        for _ in range(2 * len(queue)):
            inode = next(iter(queue.values()))
            if inode.hot == COLD and self._may_drop(inode):
                self.discard(inode)
                return True
            inode.hot &= PINNED
            queue.move_to_end(inode.id)
        return False

    def discard(self, inode: Inode) -> None:
        """Close the inode's descriptor, if it has one."""
        if inode.fd >= 0:
            del self._queue[inode.id]
            self._close(inode.fd)
            inode.fd = -1
            inode.hot &= PINNED

    def clear(self) -> None:
        """Close all."""
        while self._queue:
            self.discard(next(iter(self._queue.values())))
