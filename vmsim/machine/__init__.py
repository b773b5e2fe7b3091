"""Machines: composition of everything below, and nothing else."""

from vmsim.machine.config import MachineConfig
from vmsim.machine.machine import Machine
from vmsim.machine.parts import Backend, Seams

__all__ = ["Backend", "Machine", "MachineConfig", "Seams"]
