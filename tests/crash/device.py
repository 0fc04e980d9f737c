"""One start of the agent for the crash matrices: the rig of tests/agent, watched from outside.

For: a process that a matrix kills, or whose disk it takes away; what it said and tried is written to a file
outside its state directory as it happens, so that it outlives the process.
Not for: deciding where it is killed (`tests.crash.matrix`) or judging what is left (`tests.crash.checks`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.worker.job import TrialJob
from tests.agent.rig import DEVICE, Rig
from tests.agent.twins import TOPICS, MemoryBroker, MemoryHooks, MemoryTrials
from wire.codec import encode
from wire.measures import TrialResult
from wire.messages import Ack, Report
from wire.topics import ACK


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the witness.

    Attributes:
        kind: `started` for a process, `said` for a message, `trialed` for a trial that ended, `hooked` for an
            activated release.
        what: the message's topic, or the release's digest.
        more: the message, or the variant.
        at: how much the recorded disk had been told by then; 0 where none is recorded.
    """

    kind: str
    what: str
    more: str = ""
    at: int = 0


class Witness:
    """Appends to a file; a line is either there or not, whatever happens to the process."""

    def __init__(self, path: Path, disk_log: Path | None = None) -> None:
        self._path = path
        self._disk_log = disk_log
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def hear(self, kind: str, what: str, more: str = "") -> None:
        """Writes one line."""
        at = self._disk_log.stat().st_size if self._disk_log else 0
        os.write(self._fd, msgspec.json.encode(Heard(kind=kind, what=what, more=more, at=at)) + b"\n")

    def all(self) -> list[Heard]:
        """Every line so far."""
        return [msgspec.json.decode(line, type=Heard) for line in self._path.read_bytes().splitlines()]


class WitnessedBroker(MemoryBroker):
    """Writes down what the agent says, and acknowledges its reports as the registry does."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        self._witness.hear("said", topic, payload.decode())
        went = super().publish(topic, payload, qos=qos, retain=retain)
        if topic.endswith("/up/report"):
            report = msgspec.json.decode(payload, type=Report)
            ack = Ack(install_id=report.install_id, number=report.number)
            self.tell(TOPICS.topic(ACK, device=DEVICE), encode(ack))
        return went


class WitnessedTrials(MemoryTrials):
    """A cheap trial; releases in `poor` miss their accuracy, `slow` ones never end."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness
        self.poor: set[str] = set()
        self.slow: set[str] = set()

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        digest = job.candidate.digest
        self.hangs = digest in self.slow
        self.accuracy[job.candidate.variant] = 0.5 if digest in self.poor else 0.96
        result = super().run(job, cancel)
        if digest not in self.poor:
            self._witness.hear("trialed", digest, job.candidate.variant)
        return result


class WitnessedHooks(MemoryHooks):
    """An application that is ill with the releases in `sick`, and does not take those in `refused`."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness
        self.sick: set[str] = set()
        self.refused: set[str] = set()

    def activate(self, model: str, current: Path, cancel: threading.Event) -> None:
        digest = current.resolve().name[:64]
        self._witness.hear("hooked", digest)
        self.refuses = digest in self.refused
        super().activate(model, current, cancel)

    def healthy(self, model: str, current: Path, cancel: threading.Event) -> str | None:
        self.ill = "it shakes" if current.resolve().name[:64] in self.sick else None
        return super().healthy(model, current, cancel)


class Device(Rig):
    """A rig whose broker, trials and hooks are witnessed."""

    def __init__(self, root: Path, witness: Witness) -> None:
        super().__init__(root, WitnessedBroker(witness))
        self.slow_trials = WitnessedTrials(witness)
        self.app = WitnessedHooks(witness)
        self.trials = self.slow_trials
        self.hooks = self.app


Drive = Callable[[Device], None]


def play(root: Path, witness: Witness, prepare: Drive, drive: Drive) -> None:
    """Starts the agent on `root`, lets `drive` do its part, and ends it in order.

    Args:
        root: the state directory.
        witness: of what it says and does.
        prepare: before the start: what the broker holds and how the world behaves.
        drive: until the device is at rest.
    """
    device = Device(root, witness)
    witness.hear("started", str(os.getpid()))
    prepare(device)
    device.start()
    try:
        drive(device)
    finally:
        device.slow_trials.slow.clear()
        device.trials.hangs = False
        device.stop()
