"""How the file system is put together: every operation has one object that carries it out."""

from __future__ import annotations

from devices.virtio_fs.passthrough.attrs import AttrOps
from devices.virtio_fs.passthrough.create import CreateOps
from devices.virtio_fs.passthrough.dirs import DirOps
from devices.virtio_fs.passthrough.files import FileOps
from devices.virtio_fs.passthrough.fs import PassthroughFs
from devices.virtio_fs.passthrough.locks import LockOps
from devices.virtio_fs.passthrough.lookup import LookupOps
from devices.virtio_fs.passthrough.names import NameOps
from devices.virtio_fs.passthrough.xattr import XattrOps
from vmsim.fuse.filesystem import FileSystem
from vmsim.host.fs import LinuxFs

PARTS = (AttrOps, CreateOps, DirOps, FileOps, LockOps, LookupOps, NameOps, XattrOps)
NOT_SERVED = {"bmap", "notify_reply", "removemapping", "setupmapping"}
SESSION = {"init", "adopt", "destroy"}
OPERATIONS = {name for name in vars(FileSystem) if not name.startswith("_")}


def test_every_operation_has_one_object(tmp_path):
    fs = PassthroughFs(LinuxFs(), str(tmp_path))
    try:
        for name in sorted(OPERATIONS - SESSION - NOT_SERVED):
            carried_out_by = [part for part in PARTS if name in vars(part)]
            assert len(carried_out_by) == 1, name
            assert type(getattr(fs, name).__self__) is carried_out_by[0]
        for name in NOT_SERVED:
            assert getattr(type(fs), name) is getattr(FileSystem, name)
    finally:
        fs.close()
