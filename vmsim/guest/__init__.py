"""The guest: virtio driver, FUSE client, caches in guest memory, and a facade that looks like ``os``."""
