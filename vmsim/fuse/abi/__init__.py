"""Layouts, flags and constants of the FUSE ABI (Linux uapi ``fuse.h``, minor 41)."""
