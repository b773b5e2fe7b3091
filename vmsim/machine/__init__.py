"""Machines: composition of everything below, and nothing else."""

from vmsim.machine.config import MachineConfig
from vmsim.machine.machine import Machine
from vmsim.machine.parts import Backend, MachineBackend, Seams
from vmsim.machine.remote import RemoteBackend

__all__ = ["Backend", "Machine", "MachineBackend", "MachineConfig", "RemoteBackend", "Seams"]
