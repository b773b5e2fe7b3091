"""FUSE 7.41: ABI, one row per opcode, server session and client codec. Knows no virtio."""
