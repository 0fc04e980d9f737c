"""The power-cut matrix: what a disk may hold after a power cut, mounted, recovered and looked at.

For: `python -m tests.crash.power ORDER.json`, as root. The agent runs on ext4 on a loop device over a file
whose writes and flushes are written down (`native/recorder.c`). A state of the disk after a power cut is
everything up to a flush, and all, none, or a random part of what was written between it and the next.
Not for: crashes of the agent alone (`tests.crash.matrix`); only here can a missing fsync be seen.

Prints a JSON object as `tests.crash.matrix` does.
"""

from __future__ import annotations

import contextlib
import logging
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.crash.checks import Judge
from tests.crash.device import Heard, Witness
from tests.crash.matrix import ENDED, Found, forked
from tests.crash.scenarios import SCENARIOS, Scenario

IMAGE_BYTES = 24 * 1024 * 1024
PIECE_BYTES = 4096
"""A disk's block: this much is written whole or not at all."""

HEAD = struct.Struct("=QQ")
FLUSH = 2**64 - 1
Write = tuple[int, bytes]


class PowerPlan(Struct, frozen=True, kw_only=True):
    """What to try.

    Attributes:
        scenario: its name.
        recorder: the program of `native/recorder.c`.
        states: how many states of the disk, drawn by `seed`; None for all.
        options: of the mount, such as `noauto_da_alloc`.
        seed: of the draw, and of the parts that are lost.
        stop_at: so many violations are enough; 0 for no end before the last state.
        mutant: as in `tests.crash.matrix`.
    """

    scenario: str
    recorder: str
    states: int | None = None
    options: str = ""
    seed: int = 1
    stop_at: int = 0
    mutant: str | None = None


class Segment(Struct, frozen=True):
    """What was written between two flushes.

    Attributes:
        writes: offset and bytes, in order.
        end: how long the log was before the flush that ends it.
    """

    writes: list[Write]
    end: int


def segments(log: bytes) -> list[Segment]:
    """The log, cut at its flushes; the last segment is what no flush followed."""
    found: list[Segment] = []
    writes: list[Write] = []
    at = 0
    while at < len(log):
        offset, size = HEAD.unpack_from(log, at)
        if offset == FLUSH:
            found.append(Segment(writes, at))
            writes = []
            at += HEAD.size
            continue
        writes.append((offset, log[at + HEAD.size : at + HEAD.size + size]))
        at += HEAD.size + size
    return [*found, Segment(writes, len(log))]


def pieces(writes: list[Write]) -> list[Write]:
    """The same writes, cut into what a disk writes whole."""
    return [
        (offset + at, data[at : at + PIECE_BYTES])
        for offset, data in writes
        for at in range(0, len(data), PIECE_BYTES)
    ]


def _tool(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@contextlib.contextmanager
def mounted(disk: Path, folder: Path, options: str) -> Iterator[Path]:
    """The file system in the file `disk`, mounted at `folder` by a loop device."""
    folder.mkdir(exist_ok=True)
    device = _tool("losetup", "--find", "--show", str(disk))
    try:
        # What the kernel may still hold of an earlier image, if somebody else had the device open.
        _tool("blockdev", "--flushbufs", device)
        _tool("mount", "-t", "ext4", "-o", f"noatime{',' + options if options else ''}", device, str(folder))
        try:
            yield folder
        finally:
            _tool("umount", str(folder))
    finally:
        _tool("losetup", "--detach", device)


class PowerCuts:
    """One scenario's recorded disk, and the states that can be made of it."""

    def __init__(self, plan: PowerPlan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self.scenario = SCENARIOS[plan.scenario]
        self._image = folder / "image"
        self._told = folder / "before.witness"
        self._make()
        self.base = self._image.read_bytes()
        self._log = folder / "log"
        self._log.touch()
        self._heard = self._record()
        self.segments = segments(self._log.read_bytes())

    def _make(self) -> None:
        """A file system on which the orders before are through."""
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _tool("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        with mounted(self._image, self._folder / "mount", self._plan.options) as root:
            (root / "state").mkdir()
            for order in self.scenario.before:
                past = Scenario(name="before", order=order, running=order.which)
                self._must(forked(root / "state", self._told, past, past.drive))

    def _must(self, end: str) -> None:
        if end != ENDED:
            errors = [path.read_text() for path in self._folder.glob("*.error")]
            raise RuntimeError(f"{self.scenario.name} {end}: {errors}")

    def _record(self) -> list[Heard]:
        """Runs the scenario on the recorded disk."""
        window, witness = self._folder / "window", self._folder / "witness"
        window.mkdir()
        command = [self._plan.recorder, str(self._image), str(self._log), str(window)]
        recorder = subprocess.Popen(command)
        try:
            end_s = time.monotonic() + 10
            while not (window / "disk").exists() and time.monotonic() < end_s:
                time.sleep(0.02)
            with mounted(window / "disk", self._folder / "mount", self._plan.options) as root:
                scenario = self.scenario
                end = forked(
                    root / "state",
                    witness,
                    scenario,
                    scenario.drive,
                    mutant=self._plan.mutant,
                    clock=self._log,
                )
                self._must(end)
        finally:
            _tool("umount", str(window))
            recorder.wait(10)
        return Witness(witness).all()

    def _judge(self, root: Path) -> Judge:
        before = Witness(self._told).all() if self.scenario.before else []
        return Judge(root, was_good=bool(self.scenario.before), before=before)

    def state(self, kept: int, lost: list[Write]) -> list[str]:
        """Recovers from one state: all segments before `kept`, and `lost`, what of that one came through.

        Returns:
            What is wrong.
        """
        disk = bytearray(self.base)
        for segment in self.segments[:kept]:
            _apply(disk, segment.writes)
        _apply(disk, lost)
        self._image.write_bytes(disk)
        heard = [line for line in self._heard if line.at <= self.segments[kept].end]
        witness = self._folder / "again.witness"
        witness.unlink(missing_ok=True)
        with mounted(self._image, self._folder / "mount", self._plan.options) as mount:
            root = mount / "state"
            judge = self._judge(root)
            wrong = judge.standing(heard) if (root / "models").exists() or heard else []
            end = forked(root, witness, self.scenario, self.scenario.recover)
            heard += Witness(witness).all()
            if end != ENDED:
                told = Path(f"{witness}.error").read_text(encoding="utf-8")
                return [*wrong, f"the recovery {end}: {told[-900:]}"]
            running = self.scenario.running
            return wrong + judge.at_rest(
                heard, running.digest if running else None, self.scenario.order.number, self.scenario.ends
            )


def _apply(disk: bytearray, writes: list[Write]) -> None:
    for offset, data in writes:
        disk[offset : offset + len(data)] = data


def run(plan: PowerPlan, folder: Path) -> Found:
    """Tries the states that the plan says."""
    cuts = PowerCuts(plan, folder)
    chance = random.Random(plan.seed)
    states = [
        (at, how)
        for at, segment in enumerate(cuts.segments)
        for how in (("none", "all", "some", "few") if segment.writes else ("none",))
    ]
    chosen = states if plan.states is None else chance.sample(states, min(plan.states, len(states)))
    violations: list[str] = []
    tried = 0
    for at, how in chosen:
        if plan.stop_at and len(violations) >= plan.stop_at:
            break
        tried += 1
        parts = pieces(cuts.segments[at].writes)
        likely = {"none": 0.0, "all": 1.0, "some": 0.5, "few": 0.15}[how]
        wrong = cuts.state(at, [part for part in parts if chance.random() < likely])
        violations += [f"{plan.scenario} after flush {at}, {how} of {len(parts)} blocks: {w}" for w in wrong]
    return Found(total=len(states), tried=tried, violations=violations)


def main() -> None:
    """Reads a plan from the argument, tries it, prints what came out."""
    logging.disable(logging.CRITICAL)
    plan = msgspec.json.decode(sys.argv[1], type=PowerPlan)
    memory = Path("/dev/shm")  # the states are made of the log; what holds them needs no disk
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="shallop-power-") as folder:
        found = run(plan, Path(folder).resolve())
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
