"""Signals end a command at any moment, and it leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.waiting import until
from vmsim.cli import program
from vmsim.cli.interrupts import Interrupted, interruptible, undisturbed
from vmsim.errors import UsageError

LISTENING = ["env", "--default-signal=INT,TERM,HUP"]
"""Before a command: a shell's background jobs, and what they start, ignore SIGINT otherwise."""
MOMENTS = [(number, random.Random(number).uniform(0.0, 1.5)) for number in range(6)]


@pytest.mark.parametrize(("number", "delay"), MOMENTS)
def test_a_signal_at_any_moment(share, number, delay):
    which = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3]
    before = sorted(os.listdir(share))
    words = ["-m", "vmsim.cli", "migrate", "--json", "--hops", "1000", str(share)]
    command = [*LISTENING, sys.executable, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(
        lambda: list(share.glob("vmsim-scratch-*")), "the scratch folder", saw=lambda: os.listdir(share),
        alive=lambda: process.poll() is None,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(which)
    process.send_signal(which)  # impatience changes nothing
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + which
    assert f"interrupted by {which.name}" in err
    assert '"ok": false' in out
    assert sorted(os.listdir(share)) == before


def test_the_first_signal_is_told_and_the_others_ignored():
    handler = signal.getsignal(signal.SIGTERM)

    def interrupted():
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        interrupted()
    assert caught.value.status == 143
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_clearing_up_says_does_not_hide_the_signal(monkeypatch, capsys):
    def invoked(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            raise UsageError("it cannot be cleared up")

    monkeypatch.setattr(program.cli, "main", invoked)
    assert program.run([]) == 143
    assert "interrupted by SIGTERM" in capsys.readouterr().err


class Destroyed:
    """Somebody in whose destructor the signal arrives; Python drops what is raised there."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)


def test_a_signal_that_comes_in_a_destructor_is_not_lost():
    def interrupted():
        with interruptible():
            Destroyed()
            time.sleep(20)

    hook = sys.unraisablehook
    with pytest.raises(Interrupted) as caught:
        interrupted()
    assert caught.value.status == 143
    assert sys.unraisablehook is hook


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_undisturbed():
    with interruptible(), undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
