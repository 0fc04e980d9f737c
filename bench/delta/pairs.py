"""The pairs of files that are measured, and how each is made.

For: EfficientNet-Lite0, updated in seven ways (`bench/delta/finetune.py` trains six of them, in an
environment with torch), and the demo's two versions; each quantized by Shallop's own converter into ONNX
and TFLite with the same scales, and some as FP32.
Not for: running tools (`bench.delta.tools`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[2]
TORCH = ("torch", "onnx", "pillow", "numpy")
STEPS = 40

_ONNX = "variants/static_wi8_au8_pc_minmax/model.onnx"
_TFLITE = "variants/ai_edge_litert/static_wi8_au8_pc_minmax_twin/model.tflite"
_UPDATES = ("head", "tail", "all_sgd_1e-4", "all_sgd_1e-3", "all_adam_1e-4", "unrelated")
_EXAMPLES = ROOT / "examples" / "fashion"


class PairOfFiles(Struct, frozen=True):
    """An update: what a device holds, and what it should get."""

    name: str
    old: Path
    new: Path


def environment(folder: Path) -> Path:
    """The Python that has torch; made on the first run (CPU wheels, about 1 GB)."""
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        say(f"installing {', '.join(TORCH)} into {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *index, *TORCH], check=True)
        whole.touch()
    return python


class Workshop:
    """Makes what a pair needs, and takes what lies in `work` already as it is.

    Args:
        shared: the folder of the models.
        work: where everything goes.
        torch: the Python that has torch; None makes an environment for it, once it is needed.
    """

    def __init__(self, shared: Path, work: Path, torch: Path | None) -> None:
        self._shared, self._work, self._torch = shared.resolve(), work.resolve(), torch
        self.updates = self._work / "fp32" / "updates.json"

    def pairs(self, only: str = "") -> list[PairOfFiles]:
        """All pairs whose name holds `only`; nothing is made for the others."""
        found: list[PairOfFiles] = []
        for update in ("recalibrated", *_UPDATES):
            if _wanted(f"effnet_lite0 {update}", only):
                found += self._effnet(update)
        if only in (name := "effnet_lite0 all_adam_1e-4, fp32 onnx"):
            found.append(PairOfFiles(name, self._trained("base"), self._trained("all_adam_1e-4")))
        if _wanted("fashion v1 to v2", only):
            found += _both("fashion v1 to v2", self._fashion(1), self._fashion(2))
        first, second = (_EXAMPLES / f"fashion_v{n}.onnx" for n in (1, 2))
        found.append(PairOfFiles("fashion v1 to v2, fp32 onnx", first, second))
        other = self._shared / "fashion" / "fashion_mnv3_fp32.onnx"
        found.append(PairOfFiles("fashion v1 to another network, fp32 onnx", first, other))
        return [pair for pair in found if only in pair.name]

    def _trained(self, update: str) -> Path:
        """The weights of an update, fine-tuned here if they are not there; `base` is what it begins with.

        Raises:
            SystemExit: that Python cannot make them, with words.
        """
        made = self._work / "fp32" / f"{update}.onnx"
        if not made.exists():
            python = self._torch or environment(self._work / "torch")
            say(f"fine-tuning EfficientNet-Lite0: {update}; a minute or two on two cores ...")
            script = ROOT / "bench/delta/finetune.py"
            options = ["--steps", str(STEPS), "--update", update]
            ran = subprocess.run([python, script, self._shared, made.parent, *options], check=False)
            if ran.returncode != 0:
                raise SystemExit(f"{update} was not made; {python} needs {', '.join(TORCH)}")
        return made

    def _effnet(self, update: str) -> list[PairOfFiles]:
        base, half = self._trained("base"), "b" if update == "recalibrated" else "a"
        new = base if update == "recalibrated" else self._trained(update)
        old = self._bundle("effnet_lite0_base", base, "a")
        return _both(f"effnet_lite0 {update}", old, self._bundle(f"effnet_lite0_{update}", new, half))

    def _bundle(self, name: str, model: Path, half: str) -> Path:
        data = self._work / "data"
        options = [f"--calibration={data / f'calibration_{half}.npz'}"]
        return self._converted(name, model, [*options, f"--validation={data / 'validation.npz'}"])

    def _fashion(self, version: int) -> Path:
        data = [f"--{name}={_EXAMPLES / name}.npz" for name in ("calibration", "validation")]
        return self._converted(f"fashion_v{version}", _EXAMPLES / f"fashion_v{version}.onnx", data)

    def _converted(self, name: str, model: Path, options: list[str]) -> Path:
        """An INT8 bundle, weights per channel, ranges by minimum and maximum, for ONNX Runtime and LiteRT."""
        target = self._work / "bundles" / name
        if not (target / _TFLITE).exists():
            say(f"converting {name} ...")
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            sla = self._work / "sla.yaml"
            sla.write_text("accuracy: {min: 0.0}\n", encoding="utf-8")
            recipe = "static_wi8_au8_pc_minmax"
            command = [
                shutil.which("shallop-convert", path=str(Path(sys.executable).parent)) or "shallop-convert",
                "convert", str(model), *options, f"--sla={sla}", "--target", "x86-64-vnni", "--quick",
                "--format", "both", "--latency-samples", "30", "--name", "model", "--release", "update",
                "--quiet", "--candidates", f"onnxruntime/{recipe},ai_edge_litert/{recipe}_twin",
                "--output", str(target),
            ]  # fmt: skip
            subprocess.run(command, check=True)
        return target


def _wanted(name: str, only: str) -> bool:
    return any(only in f"{name}, int8 {form}" for form in ("onnx", "tflite"))


def _both(name: str, old: Path, new: Path) -> list[PairOfFiles]:
    return [
        PairOfFiles(f"{name}, int8 {form}", old / path, new / path)
        for form, path in (("onnx", _ONNX), ("tflite", _TFLITE))
    ]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
