"""A real Linux guest: the kernel and busybox of the peers, an initramfs made here, a shell on its console.

The kernel has virtio-pci, FUSE and virtio-fs built in, so that no module needs to be loaded.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.interop.qemu_rig import ANSWER_S, Lines, Qemu

MEMORY = "96M"
BOOT_S = 90
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo "guest: ready"
while read -r line; do
    eval "$line"
    echo "guest: done $?"
done
"""
"""Does line by line what it is told, and tells each exit code. It is one shell: its descriptors stay open."""

CPIO_FIELDS = 13


def initramfs(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive (newc) of ``files``: path without leading slash -> (mode with type, contents)."""
    archive = bytearray()
    entries = [*files.items(), ("TRAILER!!!", (0, b""))]
    for number, (path, (mode, data)) in enumerate(entries, 1):
        name = os.fsencode(path) + b"\0"
        values = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        assert len(values) == CPIO_FIELDS
        archive += b"070701" + b"".join(b"%08X" % value for value in values) + name
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def build_initramfs(peers: Any, scripts: dict[str, str]) -> bytes:
    """One with busybox, ``/init`` and ``scripts`` (path -> text)."""
    files = {
        "bin": (0o040755, b""), "dev": (0o040755, b""),
        "bin/busybox": (0o100755, Path(peers.busybox).read_bytes()), "init": (0o100755, INIT.encode()),
    }  # fmt: skip
    files |= {path: (0o100755, text.encode()) for path, text in scripts.items()}
    return initramfs(files)


class LinuxVm:
    """A QEMU with a Linux guest, or an ``incoming`` one that waits for a guest to arrive.

    ``socket`` is that of its vhost-user-fs back-end; ``device`` are more properties of the device. ``boot``
    waits for the guest's shell, ``run`` has it do something.
    """

    def __init__(
        self, peers: Any, socket: str, initrd: Path, *, incoming: bool = False, device: str = ""
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="vmsim-qemu-"))
        device = ",".join(["vhost-user-fs-pci,chardev=fs,tag=share", *filter(None, [device])])
        self.qemu = Qemu(
            peers, "-machine", "q35,memory-backend=mem", "-accel", "tcg", "-m", MEMORY,
            "-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on",
            "-kernel", peers.kernel, "-initrd", os.fspath(initrd),
            "-append", "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check nokaslr",
            "-chardev", f"socket,id=console,path={folder}/console,server=on,wait=off",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=fs,path={socket}", "-device", device,
            *(["-incoming", "defer"] if incoming else []), folder=folder,
        )  # fmt: skip
        self._console: Lines | None = None

    @property
    def console(self) -> Lines:
        """The guest's serial line; what it wrote before somebody was connected is lost."""
        if self._console is None:
            self._console = self.qemu.connect("console")
        return self._console

    def boot(self) -> None:
        """Wait for the guest's shell."""
        self._until("guest: ready", BOOT_S, "boot")

    def _until(self, pattern: str, limit_s: float, what: str) -> list[str]:
        deadline = time.monotonic() + limit_s
        lines = []
        while True:
            try:
                line = self.console.receive().rstrip("\r")
            except TimeoutError:
                raise AssertionError(f"{what}: the guest says nothing but {lines}; {self.qemu.log}") from None
            if re.match(pattern, line):
                return [*lines, line]
            lines.append(line)
            assert time.monotonic() < deadline, f"{what}: after {limit_s} s the guest has said {lines[-20:]}"

    def run(self, line: str) -> str:
        """Have the guest's shell do ``line``; what it prints. AssertionError unless it succeeds."""
        status, text = self.attempt(line)
        assert status == 0, f"{line}: exit status {status}: {text}"
        return text

    def attempt(self, line: str) -> tuple[int, str]:
        """The same, and its exit status whatever it is."""
        self.console.send(line)
        *lines, last = self._until("guest: done", ANSWER_S, line)
        return int(last.split()[-1]), "\n".join(lines)

    def close(self) -> None:
        """End it; may be called twice."""
        if self._console is not None:
            self._console.close()
        self.qemu.close()
