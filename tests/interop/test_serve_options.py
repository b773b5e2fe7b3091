"""``vmsim serve`` knows every option of the real virtiofsd by name, and prints the same capabilities."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.interop.virtiofsd_rig import start_serve, start_virtiofsd
from vmsim.check.device import RawDriver
from vmsim.check.frontend import Frontend
from vmsim.cli.compatibility import COMPATIBLE
from vmsim.cli.serve_options import ELSEWHERE, OPTIONS
from vmsim.fuse.abi.init_flags import FLOCK_LOCKS, POSIX_LOCKS
from vmsim.host.vhost_user.probe import Probe

pytestmark = pytest.mark.interop


def output(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_option_is_known(peers):
    text = output(peers.virtiofsd, "--help")
    entries = re.findall(r"^ +(-{1,2}[a-zA-Z].*)$", text, re.MULTILINE)
    theirs = {word for entry in entries for word in re.findall(r"(?:^|, )(--?[a-zA-Z][a-z0-9-]*)", entry)}
    assert len(theirs) > 40
    ours = {spelling for row in OPTIONS for spelling in row.spellings} | set(ELSEWHERE)
    assert sorted(theirs - ours) == []
    print(f"{len(theirs)} options of virtiofsd, {len(ours - theirs)} more of ours")


def test_capabilities_are_the_same(peers):
    ours = output(sys.executable, "-P", "-m", "vmsim.cli", "serve", "--print-capabilities")
    assert json.loads(ours) == json.loads(output(peers.virtiofsd, "--print-capabilities"))


OFFERED = sum(row.virtio for row in COMPATIBLE["virtiofsd"])


def offers(process):
    """The virtio features that a back-end offers, and what it answers to a Linux client's INIT."""
    front = Frontend(Probe(process.connect(), 30.0))
    front.negotiate()
    device = RawDriver(front).start()
    device.init()
    try:
        return front.features, device.session.flags
    finally:
        device.close()
        front.probe.close()


def test_compatible_is_what_virtiofsd_offers_too(peers, tmp_path):
    with start_virtiofsd(peers, tmp_path) as process:
        features, flags = offers(process)
    assert not features & OFFERED, "what the table says it lacks"
    with start_serve(tmp_path, "--compatible-with=virtiofsd", "--sandbox=none") as process:
        assert offers(process) == (features, flags)
    with start_serve(tmp_path, "--ring-reset", "--sandbox=none") as process:
        more, more_flags = offers(process)
    assert more & ~features == OFFERED, "every difference has a row"
    assert more_flags & ~flags == POSIX_LOCKS | FLOCK_LOCKS
