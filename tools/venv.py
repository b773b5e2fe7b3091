"""The virtual environment that the tools run in: made once, next to pyproject.toml, and kept up to date.

Only the standard library is used here, so that a machine with nothing but Python, venv and pip can start.
Starts that happen at the same time wait for one another, and an installation that was interrupted is done
again: a stamp is written last, and it names what was installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv"
PYTHON = HOME / "bin" / "python"
STAMP = HOME / "vmsim-installed.json"
OLDEST = (3, 11)
INTERRUPTED = 130
"""The exit status of a command that SIGINT ended."""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"vmsim: {text}", file=sys.stderr, flush=True)


def give_up(problem: str, *hints: str) -> None:
    """End with a clear message; what to do next goes on lines of its own."""
    say(problem)
    for hint in hints:
        print(f"       {hint}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def wanted(extra: str) -> dict[str, str]:
    """What the stamp has to say: this checkout, this pyproject.toml, these extras."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return {"checkout": str(ROOT), "pyproject": digest, "extra": extra}


def is_ready(extra: str) -> bool:
    """Whether the environment has everything; the one with the test tools serves for running as well."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    want = wanted(extra)
    if not extra:
        stamp["extra"] = ""
    return stamp == want and is_usable()


def is_usable() -> bool:
    """Whether we may run the environment's interpreter; it can be in another user's home folder."""
    return os.access(PYTHON, os.X_OK)


def run(command: list[str], doing: str) -> None:
    """Run one step quietly; on failure show the end of what it said, and a hint."""
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )
    if done.returncode == 0:
        return
    for line in done.stdout.strip().splitlines()[-15:]:
        print(f"  | {line}", file=sys.stderr)
    text = done.stdout.lower()
    if "ensurepip" in text or "no module named venv" in text or "no module named pip" in text:
        give_up(f"{doing} failed: this Python has no venv or no pip",
                "on Debian and Ubuntu: apt-get install python3-venv python3-pip")
    if any(word in text for word in ("connection", "resolve", "timed out", "no matching distribution")):
        give_up(f"{doing} failed: the package index cannot be reached, or lacks a package",
                "check the network and pip's configuration (`pip config list`),",
                "or point PIP_FIND_LINKS to a folder of wheels")
    give_up(f"{doing} failed with status {done.returncode}", f"to start afresh: rm -rf {HOME}")


def install(extra: str) -> None:
    """Make or complete the environment. The caller holds the lock."""
    began = time.monotonic()
    STAMP.unlink(missing_ok=True)
    works = is_usable() and subprocess.run(
        [str(PYTHON), "-m", "pip", "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    ).returncode == 0
    if not works:
        say("making .venv (once)")
        run([sys.executable, "-m", "venv", "--clear", str(HOME)], "making the virtual environment")
    target = f".[{extra}]" if extra else "."
    what = "packages and test tools" if extra else "packages"
    say(f"installing {what} (once; again when pyproject.toml changes)")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    run([*pip, "--editable", target], "installing packages")
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps(wanted(extra)) + "\n")
    temporary.replace(STAMP)
    say(f"ready after {time.monotonic() - began:.0f} s")


def ensure(extra: str = "") -> Path:
    """The environment's interpreter, with the project and (``extra="test"``) the test tools installed."""
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        give_up(f"Python {oldest} or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    if is_ready(extra):
        return PYTHON
    if not os.access(ROOT, os.W_OK):
        problem = "cannot be used by you" if HOME.exists() else "has to be made"
        give_up(f"the environment .venv {problem}, and {ROOT} is not writable", "use a copy of your own")
    lock = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another start that is setting up .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(extra):
            install(extra or installed_extra())
    except KeyboardInterrupt:
        say("interrupted; the next start goes on")
        raise SystemExit(INTERRUPTED) from None
    finally:
        os.close(lock)
    return PYTHON


def installed_extra() -> str:
    """The extra that an older stamp speaks of, so that it is kept up to date too."""
    try:
        return str(json.loads(STAMP.read_text())["extra"])
    except (OSError, ValueError, KeyError):
        return ""
