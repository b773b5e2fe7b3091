"""A share in a temporary directory, served by the passthrough file system."""

from __future__ import annotations

import contextlib

import pytest

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.fs import PassthroughFs
from tests.support.direct_fs import DirectFs
from tests.support.leaks import Held
from vmsim.host.fs import LinuxFs


@pytest.fixture
def share(tmp_path):
    path = tmp_path / "share"
    path.mkdir()
    return path


@pytest.fixture
def serve(share):
    """``serve(**options)``: a DirectFs; closed at the end of the test, and no descriptor may be left."""
    before = Held()
    with contextlib.ExitStack() as stack:

        def start(*, host=None, **options):
            chosen = FsOptions(**options)
            fs = PassthroughFs(host if host is not None else LinuxFs(), share, chosen)
            stack.callback(fs.close)
            return DirectFs(fs, chosen.init_options())

        yield start
    assert before.more() == [], "descriptors leaked"


@pytest.fixture
def fs(serve):
    return serve()
