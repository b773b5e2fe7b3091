"""The migration state of the virtio-fs back-end: collecting, encoding, restoring, and asking beforehand."""
