"""Classifies frames with the model that runs now, and takes up the next one without losing a frame.

For: showing an application of one's own how to live with Shallop: the model is loaded beside the one that
runs and takes over between two frames; every inference is counted; a status file says what is in use.
Not for: a real camera: frames come from an .npz file, in a loop.

    python examples/camera/app.py fashion examples/fashion/validation.npz --status /run/camera/status.json

One line of JSON on standard output for each frame: its number, label, confidence, and the release.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shallop_client import LIVE_DIR, MODELS_DIR, Live, Model, Release

Array = np.ndarray[Any, Any]


class Network:
    """One release, loaded: frames in, label and confidence out."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self._input = release.info["inputs"][0]["name"]
        self._prepare = release.preprocessing.get(self._input, {})
        self._labels = release.labels
        self._run = _litert(release) if release.path.suffix == ".tflite" else _onnx(release)

    def classify(self, frame: Array) -> tuple[str, float]:
        """The most probable label and its probability."""
        scores = self._run(self._tensor(frame[np.newaxis]))[0].astype(np.float64)
        if self._labels and len(self._labels) != len(scores):
            raise ValueError(f"{self.release.name} has {len(self._labels)} labels for {len(scores)} scores")
        odds = np.exp(scores - scores.max())
        best = int(odds.argmax())
        return self._labels[best] if self._labels else str(best), float(odds[best] / odds.sum())

    def _tensor(self, frames: Array) -> Array:
        """What the release says has to be done with raw pixels; the list of operations is closed."""
        tensor = frames.astype(np.float32)
        for operation in self._prepare.get("preprocessing", ()):
            if operation["op"] == "scale":
                tensor *= operation["factor"]
            elif operation["op"] == "normalize":
                shape = (1, -1, 1, 1) if self._prepare["layout"] == "NCHW" else (-1,)
                mean, std = (np.array(operation[key], np.float32).reshape(shape) for key in ("mean", "std"))
                tensor = (tensor - mean) / std
            else:
                raise ValueError(f"this application does not know the operation {operation['op']}")
        return tensor


def _onnx(release: Release) -> Any:  # noqa: ANN401 - from a tensor to scores
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: PLC0415 - only one of the two runtimes need be installed

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in release.info.get("session_config", {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(release.path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda tensor: session.run(None, {name: tensor})[0]


def _litert(release: Release) -> Any:  # noqa: ANN401
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(model_path=str(release.path))
    interpreter.allocate_tensors()
    wanted, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    axes = release.info.get("axes", {}).get(release.info["inputs"][0]["name"])

    def run(tensor: Array) -> Array:
        tensor = tensor.transpose(axes) if axes else tensor
        scale, zero = wanted["quantization"]
        if scale:
            limits = np.iinfo(wanted["dtype"])
            tensor = np.clip(np.rint(tensor / scale) + zero, limits.min, limits.max).astype(wanted["dtype"])
        interpreter.set_tensor(wanted["index"], tensor)
        interpreter.invoke()
        scores: Array = interpreter.get_tensor(given["index"])
        scale, zero = given["quantization"]
        return (scores.astype(np.float32) - zero) * scale if scale else scores

    return run


class Classifier:
    """The network in use; another release is loaded beside it and takes its place between two frames."""

    def __init__(self, name: str, models_dir: str, live_dir: str, status: Path | None) -> None:
        model = Model(name, models_dir)
        self._status = status
        self._live = Live(name, live_dir, flush_s=1.0)
        first = model.wait_for_change()
        if first is None:
            raise RuntimeError("a wait without an end ended")
        self._network = self._next = Network(first)
        self._live.use(first)
        self._frame: Array | None = None
        self._watcher = model.on_change(self._load, than=first)

    def _load(self, release: Release) -> None:
        """On the watcher's thread: what cannot be loaded is logged by it, and the old network goes on.

        Then the status never names the new release, its health check fails, and the agent turns back.
        """
        network = Network(release)
        if self._frame is not None:
            network.classify(self._frame)  # the first inference is slow, and might be the one that fails
        self._next = network

    def classify(self, frame: Array) -> tuple[str, float, Release]:
        """Label, confidence, and the release that gave them."""
        if self._next is not self._network:
            self._network = self._next
            self._live.use(self._network.release)
        self._frame = frame
        began_s = time.perf_counter()
        label, confidence = self._network.classify(frame)
        self._live.record(latency_ms=(time.perf_counter() - began_s) * 1000, confidence=confidence)
        return label, confidence, self._network.release

    def tell(self) -> None:
        """Writes what is in use; `healthy.py` reads it."""
        if self._status is not None:
            temporary = self._status.with_suffix(".tmp")
            temporary.write_text(json.dumps({"release": self._network.release.directory.name}))
            temporary.replace(self._status)

    def close(self) -> None:
        """Ends the watcher and writes the last figures."""
        self._watcher.close()
        self._live.flush()


def frames(path: Path) -> Iterator[Array]:
    """The file's images, again and again."""
    with np.load(path, allow_pickle=False) as data:
        images = data["image"]
    return itertools.cycle(images)


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(description="Classifies frames with the model that Shallop brings.")
    parser.add_argument("model", help="its name in the fleet")
    parser.add_argument("frames", type=Path, help=".npz file with the array `image`")
    parser.add_argument("--models-dir", default=MODELS_DIR)
    parser.add_argument("--live-dir", default=LIVE_DIR)
    parser.add_argument("--status", type=Path, help="file that says which release is in use")
    parser.add_argument("--fps", type=float, default=30.0)
    options = parser.parse_args(argv)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    classifier = Classifier(options.model, options.models_dir, options.live_dir, options.status)
    told_s = -1.0
    with contextlib.closing(classifier):
        for number, frame in enumerate(frames(options.frames)):
            label, confidence, release = classifier.classify(frame)
            answer = {"frame": number, "label": label, "confidence": confidence, "release": release.name}
            print(json.dumps({**answer, "directory": release.directory.name}), flush=True)
            if time.monotonic() - told_s >= 0.5:
                classifier.tell()
                told_s = time.monotonic()
            if stop.wait(1 / options.fps):
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
