"""The command line of ``tools/fuzz``."""

from __future__ import annotations

import argparse
import random
import resource
import sys
import traceback
from pathlib import Path

from engine import Fuzzer, Target
from messages_target import Messages
from requests_target import Requests
from rings_target import Rings
from states_target import Blobs, Streams

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS: dict[str, type[Target]] = {
    kind.name: kind
    for kind in (
        type("SplitRings", (Rings,), {"name": "ring-split"}),
        type("PackedRings", (Rings,), {"name": "ring-packed", "packed": True}),
        Requests, Messages, Blobs, Streams,
    )
}  # fmt: skip
MEMORY_MAX = 6 << 30
FILE_MAX = 8 << 20
"""What a request may make a file as large as, so that the fuzzer fills no disk."""


def say(line: str) -> None:
    """Tell at once, also into a pipe."""
    print(line, flush=True)


def replay(paths: list[str]) -> int:
    """Feed each file to the target that its name begins with; whether one fails."""
    failed = 0
    for path in paths:
        name = next((name for name in TARGETS if Path(path).name.startswith(name)), None)
        if name is None:
            say(f"{path}: its name does not begin with one of {', '.join(TARGETS)}")
            return 2
        target = TARGETS[name]()
        try:
            say(f"{path}: {target.run(Path(path).read_bytes())} done, nothing found")
        except Exception as error:
            failed = 1
            say(f"{path}: {getattr(error, 'report', '') or traceback.format_exc()}")
        finally:
            target.close()
    return failed


def fuzz(asked: argparse.Namespace) -> int:
    """Feed the targets, one after the other; whether something was found."""
    names = asked.targets or list(TARGETS)
    seconds = asked.seconds / len(names) if asked.seconds else None
    found = 0
    for name in names:
        say(f"{name}: seed {asked.seed}")
        target = TARGETS[name]()
        fuzzer = Fuzzer(target, asked.place, asked.seed, say)
        try:
            fuzzer.run(asked.count, seconds)
        finally:
            target.close()
        found += len(fuzzer.findings)
    say(f"{found} findings{f' in {asked.place}/findings' if found else ''}")
    return 1 if found else 0


def main() -> int:
    """The exit status: 0 nothing found, 1 something, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, help="how long, shared among the targets")
    parser.add_argument("--count", type=int, help="how many chains, requests, messages, ... of each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32),
                        help="of the random numbers (default: another each time)")  # fmt: skip
    parser.add_argument(
        "--place", type=Path, default=ROOT / ".fuzz", help="where corpus and findings are kept"
    )
    parser.add_argument(
        "--replay", nargs="+", metavar="FILE", help="feed these inputs, and show what they do"
    )
    asked = parser.parse_args()
    unknown = [name for name in asked.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    if asked.replay:
        return replay(asked.replay)
    if asked.count is None and asked.seconds is None:
        asked.seconds = 60.0
    return fuzz(asked)


if __name__ == "__main__":
    sys.exit(main())
