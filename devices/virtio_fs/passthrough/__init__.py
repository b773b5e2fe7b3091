"""The passthrough file system: a directory of the host, one method per FUSE opcode."""
