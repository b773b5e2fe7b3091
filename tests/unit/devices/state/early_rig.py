"""What a destination finds before the state comes, and how its load compares with one that found nothing."""

from __future__ import annotations

import os

from devices.virtio_fs.passthrough.inodes import PINNED
from devices.virtio_fs.state import early
from devices.virtio_fs.state.early_inodes import EarlyInodes
from vmsim.errors import VmsimError


def plant(share, folders=4, files=60):
    for folder in range(folders):
        os.mkdir(f"{share}/dir{folder}")
        for number in range(files):
            with open(f"{share}/dir{folder}/file{number}", "w") as file:
                file.write(f"{folder}/{number}")


def look_up_all(guest):
    for folder, _, files in os.walk(guest.share):
        below = os.path.relpath(folder, guest.share)
        for name in files:
            guest.lookup(os.path.normpath(f"{below}/{name}"))


def ahead(guest, *others, meanwhile=lambda: None, **options):
    """The guest's collection, and what each of ``others`` has found of it."""
    collector = guest.collector(**options)
    collector.start()
    meanwhile()
    while not collector.step(50):
        pass
    found = [EarlyInodes(other.fs) for other in others]
    for piece in early.pieces(collector, guest.fs):
        for each in found:
            each.take(piece)
    return collector, found


def view(guest, by_handle=False):
    """All that the server knows of inodes; what was made anew has a number of its own each time.

    Found by handle an inode has no place until the guest looks it up; one that was found early has.
    """
    inodes, mounts = {}, {}
    for inode in guest.fs.inodes:
        known = by_handle or inode.id == 1 or inode.name
        what = (inode.key, inode.mode, inode.handle) if known else None
        place = () if by_handle else (inode.parent_id, inode.name)
        inodes[inode.id] = (what, place, inode.nlookup, inode.state, inode.hot & PINNED)
    for key, mount in guest.fs.inodes.mounts.items():
        indexed = [inode.id for inode in guest.fs.inodes if mount.index.get(inode.ino) is inode]
        mounts[key] = (mount.count, len(mount.index), sorted(indexed))
    return inodes, mounts, guest.snapshot()


def outcome(guest, data, found=None, **options):
    """All that a load leads to."""
    by_handle = options.get("mode") == "file-handles"
    try:
        report = guest.load(data, found, **options).report
    except VmsimError as error:
        return type(error), str(error), getattr(error, "field", ""), view(guest, by_handle)
    return report, view(guest, by_handle)


def same(make_guest, data, other, found, **options):
    """The load with what was found beforehand, and one without: nobody can tell them apart."""
    plain = outcome(make_guest(), data, **options)
    assert outcome(other, data, found, **options) == plain
    return plain
