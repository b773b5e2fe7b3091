"""LinuxFs has every call of the seam, under the same name and with the same parameters."""

from __future__ import annotations

import inspect

from devices.virtio_fs.passthrough.host_calls import HostFs
from vmsim.host.fs import LinuxFs

BUILTIN = {"close", "preadv", "pwritev", "ftruncate", "lseek"}


def calls(kind):
    found = {}
    for base in kind.__mro__:
        for name, value in vars(base).items():
            if not name.startswith("_") and callable(value):
                found.setdefault(name, value)
    return found


def test_every_call_is_there():
    host = LinuxFs()
    for name, declared in calls(HostFs).items():
        real = getattr(host, name)
        if name in BUILTIN:
            continue
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        assert list(inspect.signature(real).parameters) == wanted, name
    assert isinstance(host.privileged, bool)
