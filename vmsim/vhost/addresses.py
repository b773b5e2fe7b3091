"""How a front-end tells a back-end where guest memory and rings lie: pure functions that all front-ends use.

vhost-user names memory twice. Descriptors in a ring hold guest-physical addresses; the addresses of a ring's
own areas are the front-end's virtual ones ("user addresses"), which a back-end translates by the same table
of regions. A front-end that maps nothing may take any, as long as regions do not overlap.
"""

from __future__ import annotations

from typing import Final

from vmsim.memory import GuestMemory, Region
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p

USER_BASE: Final = 0x7F00_0000_0000
"""Where guest memory lies in the addresses that a front-end sends, if its regions do not say."""


def user_base(region: Region) -> int:
    """The user address of a region's first byte."""
    return region.user_addr or USER_BASE + region.gpa


def message_region(region: Region) -> p.MemoryRegion:
    """A region as SET_MEM_TABLE and ADD_MEM_REG have it."""
    return p.MemoryRegion(region.gpa, region.size_bytes, user_base(region), region.fd_offset)


def user_addr(memory: GuestMemory, gpa: int) -> int:
    """The user address of a guest-physical one; MemoryAccessError where there is no memory."""
    region = memory.region_at(gpa)
    return user_base(region) + gpa - region.gpa


def vring_addr(
    memory: GuestMemory, index: int, desc: int, driver: int, device: int, *, log: bool
) -> p.VringAddr:
    """SET_VRING_ADDR for a ring at these guest-physical addresses.

    The log address is guest-physical, unlike the others: the dirty log has one bit per guest-physical page.
    """
    flags = c.VHOST_VRING_F_LOG if log else 0
    areas = (user_addr(memory, desc), user_addr(memory, device), user_addr(memory, driver))
    return p.VringAddr(index, flags, *areas, device)
