"""The loop: choose an input, change it, feed it, keep it if it went where none has gone before."""

from __future__ import annotations

import faulthandler
import hashlib
import mmap
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Protocol

from reading import mutated

SAMPLED: Final = 40
"""One input in so many runs with its edges watched, which makes it some ten times slower."""

INPUT_MAX: Final = 1 << 20
HANG_S: Final = 20
"""An input that takes longer is a finding (and the end of the run: whoever hangs cannot be told to stop)."""

SLOW_S: Final = 2.0
GROWTH_KIB: Final = 256 << 10
"""An input after which the process is so much larger than ever before is a finding."""


class Finding(Exception):
    """Something that must not be, though nothing was raised."""


class Target(Protocol):
    """What is fed. Whatever ``run`` raises is a finding."""

    name: str
    watched: tuple[str, ...]
    """Packages whose edges count."""

    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""
        ...

    def run(self, data: bytes) -> int:
        """Feed one input, whatever ran before; how many chains, requests, messages, ... that was."""
        ...

    def close(self) -> None:
        """Clean up."""
        ...


class Edges:
    """Which lines of the watched packages followed which."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._wanted = tuple(f"{os.sep}{name.replace('.', os.sep)}{os.sep}" for name in packages)
        self._codes: dict[int, int] = {}
        self._kept: list[CodeType] = []
        self._here = 0
        self.seen: set[tuple[int, int]] = set()

    def watch(self, run: Callable[[], int]) -> tuple[int, int]:
        """``run()``, and how many edges it found that were not known."""
        before = len(self.seen)
        sys.settrace(self._enter)
        try:
            done = run()
        finally:
            sys.settrace(None)
        return done, len(self.seen) - before

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        number = self._codes.get(id(code))
        if number is None:
            self._kept.append(code)  # or its id could become another one's
            wanted = any(part in code.co_filename for part in self._wanted)
            number = self._codes[id(code)] = len(self._kept) << 20 if wanted else 0
        if not number:
            return None
        seen = self.seen

        def line(frame: FrameType, event: str, arg: object) -> Any:
            if event == "line":
                here = number + frame.f_lineno
                seen.add((self._here, here))
                self._here = here
            return line

        return line


class Fuzzer:
    """Feeds one target until ``count`` operations or ``seconds`` are over; what is found lies in ``place``.

    ``place/corpus`` keeps the inputs that found new edges, ``place/findings`` those that failed with their
    tracebacks, ``place/current`` the one that is being fed, should the process die of it.
    """

    def __init__(self, target: Target, place: Path, seed: int, say: Callable[[str], None]) -> None:
        self.target = target
        self.done = self.inputs = 0
        self.findings: dict[str, Path] = {}
        self._say = say
        self._rng = random.Random(f"{target.name}/{seed}")
        self._edges = Edges(target.watched)
        self._corpus_dir = place / "corpus" / target.name
        self._findings_dir = place / "findings"
        for folder in (self._corpus_dir, self._findings_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self._current_path = place / f"current-{target.name}"
        with open(self._current_path, "w+b") as file:
            file.truncate(4 + INPUT_MAX)
            self._current = mmap.mmap(file.fileno(), 4 + INPUT_MAX)
        self.corpus: list[bytes] = []
        self._largest_kib = 0

    def run(self, count: int | None, seconds: float | None) -> None:
        """Until then; Ctrl-C ends it earlier."""
        began = told = time.monotonic()

        def over() -> bool:
            past = seconds is not None and time.monotonic() - began >= seconds
            return past or (count is not None and self.done >= count)

        kept = [path.read_bytes() for path in sorted(self._corpus_dir.iterdir())]
        first = self.target.seeds()
        self._rng.shuffle(first)
        for data in kept + first:
            if not over():
                self._feed(data, watched=True)
        while not over():
            self._feed(self._next(), watched=self._rng.randrange(SAMPLED) == 0)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                self._say(self.state(told - began))
        self._say(self.state(time.monotonic() - began))
        self._current_path.unlink()

    def state(self, seconds: float) -> str:
        """One line."""
        rate = self.done / seconds if seconds else 0
        return (
            f"{self.target.name}: {self.done} done in {self.inputs} inputs ({rate:.0f}/s), "
            f"{len(self._edges.seen)} edges, {len(self.corpus)} kept, {len(self.findings)} findings"
        )

    def _next(self) -> bytes:
        rng = self._rng
        if not self.corpus or rng.randrange(20) == 0:
            return rng.randbytes(rng.choice((40, 400, 4000)))
        # Half of the time one of those that came last: what they lead to is not known yet.
        recent = self.corpus[-32:] if rng.randrange(2) else self.corpus
        return mutated(rng.choice(recent), self.corpus, rng)[:INPUT_MAX]

    def _feed(self, data: bytes, *, watched: bool) -> None:
        data = data[:INPUT_MAX]
        self._current[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
        faulthandler.dump_traceback_later(HANG_S * (4 if watched else 1), exit=True)
        began = time.thread_time()
        new = 0
        try:
            if watched:
                done, new = self._edges.watch(lambda: self.target.run(data))
            else:
                done = self.target.run(data)
            self._check_cost(time.thread_time() - began, watched)
        except Exception as error:
            self._report(data, error)
            done = 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.done += done
        self.inputs += 1
        if new:
            self.corpus.append(data)
            self._keep(self._corpus_dir, data)

    def _check_cost(self, seconds: float, watched: bool) -> None:
        if seconds > SLOW_S and not watched:
            raise Finding(f"{seconds:.1f} s of computing for one input")
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if self._largest_kib and size > self._largest_kib + GROWTH_KIB:
            raise Finding(f"the process has grown from {self._largest_kib} to {size} KiB")
        self._largest_kib = max(size, self._largest_kib)

    def _report(self, data: bytes, error: Exception) -> None:
        report = getattr(error, "report", "") or "".join(traceback.format_exception(error))
        places = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "fuzzing" not in frame.filename
        ]
        last = places[-1] if places else None
        where = f"{last.filename}:{last.lineno}" if last else str(error)[:80]
        mark = (
            getattr(error, "report", "").strip().rpartition("\n  File ")[2]
            or f"{type(error).__name__} {where}"
        )
        if mark in self.findings:
            return
        path = self._findings_dir / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(report)
        self.findings[mark] = path
        self._say(f"{self.target.name}: FINDING {type(error).__name__}: {str(error)[:200]}\n    {path}")

    @staticmethod
    def _keep(folder: Path, data: bytes) -> None:
        path = folder / hashlib.sha256(data).hexdigest()[:16]
        if not path.exists():
            path.write_bytes(data)
