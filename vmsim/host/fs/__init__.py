"""The system calls of a file server, on Linux, without a compiler."""

from vmsim.host.fs.linux import LinuxFs

__all__ = ["LinuxFs"]
