"""The crash matrix: one deployment, killed before each call that changes its disk, and started again.

For: `python -m tests.crash.matrix ORDER.json` with the preload library of `native/killpoint.c` in place. It
forks: what the agent imports is loaded once, so that a point costs the deployment and nothing else.
Not for: choosing which points (`tests.crash.test_kills`).

Prints a JSON object: the number of points there are, how many were tried, and every violation by its point.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.crash.checks import Judge, came_by_delta
from tests.crash.device import Drive, Witness, play
from tests.crash.scenarios import SCENARIOS, Scenario
from wire.messages import OrderOutcome

KILLED, ENDED, BROKEN = "killed", "ended", "broken"
STEP_S_MAX = 60


class Plan(Struct, frozen=True, kw_only=True):
    """What to try.

    Attributes:
        scenario: its name.
        points: how many points, drawn by `seed`, at which a kill happens; None for all there are.
        calls: only points whose call holds these words.
        pairs: how many pairs of a kill and a second one during the recovery.
        storms: how many devices that are killed again and again.
        seed: of the draw.
        mutant: a module's function that is called first, in the process that is killed.
    """

    scenario: str
    points: int | None = None
    calls: str = ""
    pairs: int = 0
    storms: int = 0
    seed: int = 1
    mutant: str | None = None


class Found(Struct, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        total: calls of an uninterrupted run that change the disk.
        tried: kills that happened.
        violations: each with its point.
        names: the calls, by number.
    """

    total: int
    tried: int
    violations: list[str]
    names: list[str] = []


class Kill(Struct, frozen=True, kw_only=True):
    """Where a process dies.

    Attributes:
        at: number of the call, from 0: of all, or of those that are `call`.
        call: the call with its path below the state directory; threads take turns, so that a call's number
            among all differs from run to run, and its number among its like does not.
        torn: a write does half of its work first.
    """

    at: int
    call: str | None = None
    torn: bool = False


def forked(
    root: Path,
    witness: Path,
    scenario: Scenario,
    drive: Drive,
    *,
    mutant: str | None = None,
    arm: Callable[[], None] = lambda: None,
    clock: Path | None = None,
) -> str:
    """Forks a process that is the device, and waits for its end.

    Args:
        root: its state directory.
        witness: what hears it; a trace of what broke is put beside it.
        scenario: how its world is.
        drive: what happens.
        mutant: `module:function` that is called first.
        arm: called in the new process, before the device starts.
        clock: a file whose length is the time on the witness's lines.

    Returns:
        `ended`, `killed`, `broken` or the signal's number.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(STEP_S_MAX)
            faulthandler.enable(os.open(f"{witness}.error", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            arm()
            if mutant is not None:
                module, _, name = mutant.partition(":")
                getattr(importlib.import_module(module), name)()
            play(root, Witness(witness, clock), scenario.prepare, drive)
            code = 0
        except BaseException:  # noqa: BLE001 - told by the parent, whatever it was
            Path(f"{witness}.error").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return KILLED if os.WTERMSIG(status) == signal.SIGKILL else f"signal {os.WTERMSIG(status)}"
    return ENDED if os.WEXITSTATUS(status) == 0 else BROKEN


class Matrix:
    """One scenario's points, in a folder of their own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.scenario = SCENARIOS[plan.scenario]
        self._plan = plan
        self._folder = folder
        self._library = ctypes.CDLL(None)
        self._library.killpoint_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_int, ctypes.c_int,
        ]  # fmt: skip
        self._template = folder / "template"
        self._told = folder / "template.witness"
        for order in self.scenario.before:
            past = Scenario(name="before", order=order, running=order.which)
            self._must(ENDED, self._run(self._template, self._told, past, past.drive))
        self._template.mkdir(exist_ok=True)
        if self.scenario.harm is not None:
            self.scenario.harm(self._template)

    def _run(
        self,
        root: Path,
        witness: Path,
        scenario: Scenario,
        drive: Drive,
        kill: Kill | None = None,
        log: Path | None = None,
    ) -> str:
        def arm() -> None:
            if kill is None and log is None:
                return
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else -1
            at = kill or Kill(at=-1)
            only = _with_root(at.call, root).encode() if at.call else None
            self._library.killpoint_arm(str(root).encode(), at.at, only, int(at.torn), fd)

        return forked(root, witness, scenario, drive, mutant=self._plan.mutant, arm=arm)

    def _must(self, wanted: str, got: str) -> None:
        if got != wanted:
            errors = [p.read_text() for p in self._folder.glob("**/*.error")]
            raise RuntimeError(f"{self.scenario.name}: {got} instead of {wanted}\n" + "\n".join(errors))

    # --- points

    def calls(self) -> list[str]:
        """The calls that an uninterrupted run makes."""
        log = self._folder / "calls"
        root, witness = self._fresh("whole")
        self._must(ENDED, self._run(root, witness, self.scenario, self.scenario.drive, log=log))
        wrong = self._judge(root).at_rest(Witness(witness).all(), *self._wanted())
        if wrong and self._plan.mutant is None:
            raise RuntimeError(f"{self.scenario.name} is wrong without a crash: {wrong}")
        if self.scenario.by_delta and not any(map(came_by_delta, Witness(witness).all())):
            raise RuntimeError(f"{self.scenario.name}: nothing came by a delta")
        shutil.rmtree(root.parent)
        return [line.replace(str(root), "") for line in log.read_text().splitlines()]

    def _fresh(self, name: str) -> tuple[Path, Path]:
        root = self._folder / name / "state"
        root.parent.mkdir()
        shutil.copytree(self._template, root, symlinks=True)
        witness = root.parent / "witness"
        return root, witness

    def _judge(self, root: Path) -> Judge:
        before = Witness(self._told).all() if self.scenario.before else []
        return Judge(
            root, was_good=bool(self.scenario.before), before=before, harmed=self.scenario.harm is not None
        )

    def _wanted(self) -> tuple[str | None, int, OrderOutcome]:
        running = self.scenario.running
        return running.digest if running else None, self.scenario.order.number, self.scenario.ends

    def point(self, name: str, *kills: Kill) -> tuple[int, list[str]]:
        """Kills the device at each of these, one start after the other, then lets it come to rest.

        Returns:
            How many of the kills happened, and what is wrong.
        """
        root, witness = self._fresh(name)
        judge = self._judge(root)
        wrong: list[str] = []
        killed = 0
        drive = self.scenario.drive
        for kill in kills:
            end = self._run(root, witness, self.scenario, drive, kill)
            if end == ENDED:
                break
            if end != KILLED:
                wrong.append(f"{end}: {self._error(witness)}")
                break
            killed += 1
            wrong += judge.standing(Witness(witness).all())
            drive = self.scenario.recover
        end = self._run(root, witness, self.scenario, self.scenario.recover)
        if end != ENDED:
            wrong.append(f"the recovery {end}: {self._error(witness)}")
        else:
            wrong += judge.at_rest(Witness(witness).all(), *self._wanted())
        shutil.rmtree(root.parent)
        return killed, wrong

    def storm(self, name: str, chance: random.Random, total: int) -> tuple[int, list[str]]:
        """Kills it over and over; at the end the order is through or given up, and a release runs."""
        root, witness = self._fresh(name)
        judge = self._judge(root)
        wrong: list[str] = []
        killed = 0
        for _ in range(12):
            kill = Kill(at=chance.randrange(total), torn=chance.random() < 0.5)
            end = self._run(root, witness, self.scenario, self.scenario.settle, kill)
            killed += end == KILLED
            if end == BROKEN:
                wrong.append(f"broken: {self._error(witness)}")
            wrong += judge.standing(Witness(witness).all())
        end = self._run(root, witness, self.scenario, self.scenario.settle)
        if end != ENDED:
            wrong.append(f"the recovery {end}: {self._error(witness)}")
        wrong += judge.standing(Witness(witness).all())
        shutil.rmtree(root.parent)
        return killed, wrong

    @staticmethod
    def _error(witness: Path) -> str:
        told = Path(f"{witness}.error")
        return told.read_text(encoding="utf-8")[-600:] if told.exists() else "no trace"


def _with_root(call: str, root: Path) -> str:
    """The call as the library writes it; a path relative to a folder that is open has no root."""
    what, _, path = call.partition(" ")
    return f"{what} {root}{path}" if path.startswith("/") or not path else call


def addresses(names: list[str]) -> list[tuple[str, int]]:
    """Each call of a run by its name and its number among its like."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for name in names:
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def run(plan: Plan, folder: Path) -> Found:
    """Tries what the plan says."""
    matrix = Matrix(plan, folder)
    names = matrix.calls()
    total, chance = len(names), random.Random(plan.seed)
    chosen = [at for at, name in enumerate(names) if plan.calls in name]
    points = len(chosen) if plan.points is None else min(plan.points, len(chosen))
    if plan.points is not None:
        # Some more: on a busy machine the run that was counted made calls that another one does not.
        chosen = chance.sample(chosen, min(4 * points, len(chosen)))
    tried = 0
    violations: list[str] = []
    named = addresses(names)
    for at in chosen:
        if plan.points is not None and tried >= points:
            break
        call, nth = named[at]
        writes = call.startswith(("write", "pwrite"))
        for torn in (False, True) if writes and plan.points is None else (writes and chance.random() < 0.5,):
            killed, wrong = matrix.point(f"p{at}-{torn}", Kill(at=nth, call=call, torn=torn))
            tried += killed
            violations += [f"{plan.scenario} {at}{' torn' if torn else ''} ({call}): {w}" for w in wrong]
    for number in range(plan.pairs):
        kills = [Kill(at=chance.randrange(total)) for _ in range(2)]
        killed, wrong = matrix.point(f"q{number}", *kills)
        tried += killed
        violations += [f"{plan.scenario} {[k.at for k in kills]}: {w}" for w in wrong]
    for number in range(plan.storms):
        killed, wrong = matrix.storm(f"s{number}", chance, total)
        tried += killed
        violations += [f"{plan.scenario} storm {number} of seed {plan.seed}: {w}" for w in wrong]
    return Found(total=total, tried=tried, violations=violations, names=names)


def main() -> None:
    """Reads a plan from the argument, tries it, prints what came out."""
    logging.disable(logging.CRITICAL)
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    memory = Path("/dev/shm")  # kills lose nothing that was written, so memory will do
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="shallop-crash-") as folder:
        gc.freeze()
        found = run(plan, Path(folder).resolve())
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
