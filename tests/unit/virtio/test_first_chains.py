"""The first chain that a ring sees is the chain that is in the ring, whatever its bytes look like."""

from __future__ import annotations

import pytest

from tests.support.ring_pair import DATA, make_config, make_memory
from vmsim.virtio.constants import F_INDIRECT_DESC, F_RING_PACKED
from vmsim.virtio.rings import make_device_ring, make_driver_ring


@pytest.mark.parametrize("features", [0, F_RING_PACKED, F_INDIRECT_DESC, F_RING_PACKED | F_INDIRECT_DESC])
@pytest.mark.parametrize("length", [1, 0x3F, 0x3F3F])
def test_at_any_address(features, length):
    """A cache that has seen nothing must not recognise anything: every low byte, in every position."""
    for low in range(256):
        memory = make_memory()
        config = make_config(features, 8)
        driver = make_driver_ring(config, memory)
        driver.initialise()
        device = make_device_ring(config, memory)
        gpa = DATA + low * 0x101
        memory.write(gpa, bytes([low]) * length)
        driver.add([(gpa, length)], [(DATA + 0x100000, 16)])
        driver.publish()
        chain = device.pop()
        assert chain is not None
        assert (chain.readable_bytes, chain.writable_bytes) == (length, 16)
        assert b"".join(chain.readable) == bytes([low]) * length
        device.push(chain, 16)
        assert driver.reap() is not None
