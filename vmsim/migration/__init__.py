"""QEMU's migration stream, declarative vmstate, the RAM section and the phases of a migration."""
