"""What replies teach the guest: nodes, attributes, names, and when cached pages are out of date."""

from __future__ import annotations

from collections.abc import Sequence

from vmsim.fuse.abi import init_flags
from vmsim.guest.kernel.dentries import DentryCache
from vmsim.guest.kernel.nodes import NodeTable, valid_until
from vmsim.guest.kernel.page_cache import PageCache
from vmsim.guest.state import Attr, KernelState, Node
from vmsim.memory import PAGE_SIZE, GuestMemory
from vmsim.schedule import Schedule


class InodeCache:
    """What keeps the node table, the dentry cache, the attribute cache and the page cache up to date.

    ``pages`` and ``dentries`` are None in a guest without them.
    """

    def __init__(
        self, memory: GuestMemory, schedule: Schedule, state: KernelState, nodes: NodeTable,
        pages: PageCache | None, dentries: DentryCache | None,
    ) -> None:  # fmt: skip
        self.memory = memory
        self.schedule = schedule
        self.state = state
        self.nodes = nodes
        self.pages = pages
        self.dentries = dentries

    def apply_attr(self, node: Node, raw: Sequence[int], valid: int, valid_nsec: int, version: int) -> bool:
        """Take over attributes that were asked for at ``version``; False if we know better meanwhile.

        Size and times of a file with dirty pages are the guest's own. A changed size or modification time
        drops cached pages (AUTO_INVAL_DATA).
        """
        if node.attr_version > version:
            node.attr_expiry_ns = 0
            return False
        attr = Attr(*raw)
        old = node.attr
        if node.dirty_size:
            attr.size = old.size
        if node.dirty_mtime:
            attr.mtime, attr.mtimensec, attr.ctime, attr.ctimensec = (
                old.mtime, old.mtimensec, old.ctime, old.ctimensec,
            )  # fmt: skip
        if self.pages is not None:
            self._auto_invalidate(node, old, attr)
        node.attr = attr
        node.acl_expiry_ns = 0
        node.attr_expiry_ns = self.expiry(valid, valid_nsec) if self.dentries is not None else 0
        return True

    def _auto_invalidate(self, node: Node, old: Attr, new: Attr) -> None:
        assert self.pages is not None
        auto = self.state.session.flags & init_flags.AUTO_INVAL_DATA
        changed = old.mtimensec != new.mtimensec or old.mtime != new.mtime
        if old.size != new.size or (auto and changed):
            node.pages_epoch += 1
            self.pages.drop_clean(node.id)

    def apply_entry(
        self, parent: int, name: bytes, raw: Sequence[int], version: int, names_version: int
    ) -> Node:
        """Note the entry of a LOOKUP or creating request; its node, with a reference for the caller.

        ``raw`` are the 22 fields of ``fuse_entry_out``. EIO if the server contradicts itself.
        """
        node, new = self.nodes.learn(raw[0], raw[1], Attr(*raw[6:22]))
        try:
            if new:
                node.attr_version = version
            self.apply_attr(node, raw[6:22], raw[3], raw[5], version)
            self.nodes.put_on_device(node, parent, name, raw[21])
            if names_version == self.state.names_version or not node.parent:
                self.nodes.place(node, parent, name)
        except OSError:
            self.nodes.drop(node.id)
            raise
        if self.dentries is not None and names_version == self.state.names_version:
            self.remember_name(parent, name, node.id, self.expiry(raw[2], raw[4]))
        return node

    def remember_name(self, parent: int, name: bytes, nodeid: int, expiry_ns: int) -> None:
        """Put a dentry (``nodeid`` 0: a negative one) into the cache; it holds its node and its parent."""
        if self.dentries is None or expiry_ns <= self.schedule.now_ns():
            self.forget_name(parent, name)
            return
        self.nodes.hold(parent)
        if nodeid:
            self.nodes.hold(nodeid)
        for old_parent, old_node in self.dentries.put(parent, name, nodeid, expiry_ns):
            self._drop_dentry(old_parent, old_node)

    def forget_name(self, parent: int, name: bytes) -> None:
        """Take a dentry out of the cache."""
        if self.dentries is not None:
            for old_parent, old_node in self.dentries.remove(parent, name):
                self._drop_dentry(old_parent, old_node)

    def names_changed(self, *names: tuple[int, bytes]) -> None:
        """We changed these (directory, name) pairs: drop their dentries, and distrust lookups under way."""
        self.state.names_version += 1
        for parent, name in names:
            self.forget_name(parent, name)

    def shrink_dentries(self) -> None:
        """Drop the whole dentry cache, as memory pressure would."""
        if self.dentries is not None:
            for parent, nodeid in self.dentries.clear():
                self._drop_dentry(parent, nodeid)

    def _drop_dentry(self, parent: int, nodeid: int) -> None:
        if nodeid:
            self.nodes.drop(nodeid)
        self.nodes.drop(parent)

    def touch(self, node: Node) -> None:
        """We changed the file: replies to what was asked before are out of date."""
        state = self.state
        state.attr_version += 1
        node.attr_version = state.attr_version
        node.attr_expiry_ns = node.acl_expiry_ns = 0

    def distrust(self) -> None:
        """A change was made, or was not, for somebody who is gone: nobody knows of what any more."""
        self.state.names_version += 1
        self.shrink_dentries()
        for node in self.state.nodes.values():
            self.touch(node)
            node.pages_epoch += 1
            if self.pages is not None:
                self.pages.drop_clean(node.id)

    def zero_tail(self, nodeid: int, size: int) -> None:
        """Zero what a cached last page holds behind the new end of its file."""
        inside = size % PAGE_SIZE
        frame = self.pages.find(nodeid, size // PAGE_SIZE) if self.pages is not None and inside else None
        if frame is not None and self.pages is not None:
            self.memory.write(self.pages.gpa(frame) + inside, bytes(PAGE_SIZE - inside))

    def expiry(self, seconds: int, nsec: int) -> int:
        """When something ends that is valid for so long from now."""
        return valid_until(self.schedule.now_ns(), seconds, nsec)

    def realtime_ns(self) -> int:
        """The guest's wall clock."""
        return self.state.config.realtime_ns + self.schedule.now_ns()
