"""Devices for vmsim; each is found by name through the entry-point group ``vmsim.devices``."""
