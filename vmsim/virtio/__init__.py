"""virtio 1.3: constants, rings, chains, device life cycle, the virtio-mmio register file. Knows no FUSE."""
