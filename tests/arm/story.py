"""The agent's main job on one board: first release, second release in the other runtime, and back.

For: driving a real registry and a real broker on this machine while the agent and its worker are aarch64
processes. Release 1 is the ONNX file, release 2 a newer model as TFLite; the way back is the rollback payload
that the registry made ready, sent by hand as one MQTT message.
Not for: asserting; what the device said and what lies on its disk is kept for the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from paho.mqtt import publish

from examples.demo.house import ROOT, House, wait_for
from tests.arm.boards import Board
from tests.integration.hand import Hand
from wire import codec, topics
from wire.messages import Identity, ModelState, Phase

EXAMPLE = ROOT / "examples" / "fashion"
TWIN = "static_wi8_ai8_pc_minmax_twin"
FIRST = {"1": f"onnxruntime/{TWIN}", "2": f"ai_edge_litert/{TWIN}"}
"""The variant that each release prefers."""
NAMED = {"1": ("onnxruntime", "ai-edge-litert"), "2": ("ai-edge-litert", "onnxruntime")}
FILES = {"1": "fashion_v1.onnx", "2": "fashion_v2.onnx"}
SAMPLES = {"calibration.npz": 128, "validation.npz": 48}
"""Pictures of each set: an emulated inference costs a tenth of a second on a busy machine."""
SLA = "accuracy: {min_fraction_of_baseline: 0.9}\nagreement: {min: 0.9}\nsize_bytes_max: 2000000\n"
"""Without latency and memory: those of an emulated board are the emulator's. Wide, for so few pictures."""
GATE = "min_fraction: 1.0\nfailures_max: 0\nsilence: {after_s: 300, max: 0}\n"
WAIT_S = 240.0


class Told(Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        identity: as the agent reported it.
        states: by step (`1`, `2`, `back`), what the agent reported of the model.
        current: by step, what `current/release.json` said.
        findings: what `shallop-agent doctor --json` found there before the first release; None where this
            tree's agent has no such command.
        status: what `shallop-agent status --json` printed there at the end.
    """

    identity: Identity
    states: dict[str, ModelState]
    current: dict[str, dict[str, Any]]
    findings: list[dict[str, str]] | None
    status: dict[str, Any]


def model_of(board: Board) -> str:
    """The name of its model: each board has one of its own, quantized for its processor."""
    return f"fashion-{board.kind.target}"


def data(folder: Path) -> Path:
    """The example's pictures, as many as are wanted, and the SLA."""
    for file, count in SAMPLES.items():
        with np.load(EXAMPLE / file, allow_pickle=False) as arrays:
            np.savez(
                folder / file, allow_pickle=False, **{name: arrays[name][:count] for name in arrays.files}
            )
    (folder / "dataset.yaml").write_bytes((EXAMPLE / "dataset.yaml").read_bytes())
    (folder / "sla.yaml").write_text(SLA)
    return folder


def converted(folder: Path, *, file: str, target: str, release: str, candidates: Sequence[str]) -> Path:
    """A bundle by the real converter on this machine, of the `data` in that folder.

    Raises:
        RuntimeError: no candidate met the SLA.
    """
    name = f"fashion-{target}"
    output = folder / f"{name}-{release}"
    command = [
        sys.executable, "-m", "converter.cli", "convert", str(EXAMPLE / file), "--target", target,
        "--calibration", str(folder / "calibration.npz"), "--validation", str(folder / "validation.npz"),
        "--sla", str(folder / "sla.yaml"), "--name", name, "--release", release, "--output", str(output),
        "--quick", "--quiet", "--candidates", ",".join(candidates),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"shallop-convert ended with {done.returncode}: {done.stderr[-2000:]}")
    return output


class Story:
    """One board's part in a house with a broker and a registry.

    Args:
        house: both run in it.
        hand: watches what devices say.
        board: the agent lives on it.
        bundles: by release.
    """

    def __init__(self, house: House, hand: Hand, board: Board, bundles: dict[str, Path]) -> None:
        self._house, self._hand, self._board, self._bundles = house, hand, board, bundles
        self._device, self._model = board.kind.device, model_of(board)
        self._ready: dict[str, Any] = {}

    def tell(self) -> Told:
        """All of it, in order."""
        trial = {
            "python": str(self._board.python), "warmup": 0, "latency_runs": 2,
            "lock_file": str(self._house.folder / f"{self._device}.lock"),
        }  # fmt: skip
        self._house.agent(self._device, str(self._board.python), trial=trial)
        identity = wait_for(f"{self._device} to say what it is", self._identity, WAIT_S)
        has_doctor = "doctor" in self._board.run("-m", "agent.cli", "--help")
        findings = self._asked("doctor") if has_doctor else None
        states, current = {}, {}
        for step, act in (("1", self._roll_out), ("2", self._roll_out), ("back", self._roll_back)):
            act(step)
            states[step] = self._settled(f"{self._model}@{'1' if step == 'back' else step}")
            current[step] = self._current()
        return Told(
            identity=identity, states=states, current=current, findings=findings, status=self._asked("status")
        )

    def _identity(self) -> Identity | None:
        channel = topics.IDENTITY
        topic = self._hand.topics.topic(channel, device=self._device)
        said = [payload for name, payload in self._hand.seen if name == topic and payload]
        return codec.decode(said[-1], Identity, channel.size_bytes_max) if said else None

    def _roll_out(self, release: str) -> None:
        gate = self._house.folder / f"{self._device}-gate.yaml"
        gate.write_text(GATE)
        self._house.fleet("publish", str(self._bundles[release]))
        shown = self._house.fleet(
            "rollout", "start", f"{self._model}@{release}", "--select", f'board="{self._board.kind.board}"',
            "--waves", "100%", "--gate", str(gate), "--soak", "1", "--deadline", str(WAIT_S), "--wait",
            codes=(0, 3),
        )  # fmt: skip
        if shown["rollout"]["state"] != "completed":
            raise RuntimeError(f"{shown}\n{self._house.agents[self._device].tail()}")
        self._ready = shown["rollback"]

    def _roll_back(self, _step: str) -> None:
        url = self._ready["url_per_device"].replace("DEVICE", self._device)
        with urllib.request.urlopen(url, timeout=10) as answer:
            payload, topic = answer.read(), answer.headers["X-Topic"]
        publish.single(topic, payload, qos=1, port=self._house.broker_port, hostname="127.0.0.1")
        wait_for(f"{self._device} to switch back", lambda: self._current()["release"] == "1", WAIT_S)

    def _settled(self, what: str) -> ModelState:
        release = what.rpartition("@")[2]
        return self._hand.wait_state(
            self._device, self._model,
            lambda s: s.phase is Phase.IDLE and s.active is not None and s.active.release == release, WAIT_S,
        )  # fmt: skip

    def _current(self) -> dict[str, Any]:
        current = self._house.current(self._device, self._model)
        if current is None:
            raise RuntimeError(f"{self._device} has no {self._model}")
        found: dict[str, Any] = json.loads((current / "release.json").read_bytes())
        return found

    def _asked(self, command: str) -> Any:  # noqa: ANN401 - each command's own
        """What a command of the agent prints as JSON on the board."""
        config = self._house.folder / f"{self._device}.yaml"
        return json.loads(self._board.run("-m", "agent.cli", command, "--json", "--config", str(config)))
