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
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"installing {', '.join(TORCH)} into {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        index = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *index, *TORCH], check=True)
    return python


def make_pairs(shared: Path, work: Path, python: Path) -> list[PairOfFiles]:
    """All pairs; what lies in `work` already is taken as it is."""
    trained = work / "fp32"
    if not (trained / "updates.json").exists():
        say("fine-tuning EfficientNet-Lite0 in five ways; some minutes on two cores ...")
        script = ROOT / "bench/delta/finetune.py"
        subprocess.run([python, script, shared, trained, "--steps", str(STEPS)], check=True)
    data = work / "data"
    base = _bundle(work, "effnet_lite0_base", trained / "base.onnx", data, "a")
    again = _bundle(work, "effnet_lite0_recalibrated", trained / "base.onnx", data, "b")
    found = _both("effnet_lite0 recalibrated", base, again)
    for update in _UPDATES:
        made = _bundle(work, f"effnet_lite0_{update}", trained / f"{update}.onnx", data, "a")
        found += _both(f"effnet_lite0 {update}", base, made)
    new = trained / "all_adam_1e-4.onnx"
    found.append(PairOfFiles("effnet_lite0 all_adam_1e-4, fp32 onnx", trained / "base.onnx", new))
    first, second = (_demo_bundle(work, version) for version in (1, 2))
    found += _both("fashion v1 to v2", first, second)
    versions = [_EXAMPLES / f"fashion_v{n}.onnx" for n in (1, 2)]
    found.append(PairOfFiles("fashion v1 to v2, fp32 onnx", versions[0], versions[1]))
    other = shared / "fashion" / "fashion_mnv3_fp32.onnx"
    found.append(PairOfFiles("fashion v1 to another network, fp32 onnx", versions[0], other))
    return found


def _both(name: str, old: Path, new: Path) -> list[PairOfFiles]:
    return [
        PairOfFiles(f"{name}, int8 {form}", old / path, new / path)
        for form, path in (("onnx", _ONNX), ("tflite", _TFLITE))
    ]


def _bundle(work: Path, name: str, model: Path, data: Path, half: str) -> Path:
    options = ["--calibration", str(data / f"calibration_{half}.npz"), "--sla", str(data / "sla.yaml")]
    return _converted(work, name, model, [*options, "--validation", str(data / "validation.npz")])


def _demo_bundle(work: Path, version: int) -> Path:
    data = [f"--{name}={_EXAMPLES / name}.npz" for name in ("calibration", "validation")]
    options = [*data, f"--sla={work / 'data' / 'sla.yaml'}"]
    return _converted(work, f"fashion_v{version}", _EXAMPLES / f"fashion_v{version}.onnx", options)


def _converted(work: Path, name: str, model: Path, options: list[str]) -> Path:
    """An INT8 bundle, weights per channel, ranges by minimum and maximum, for ONNX Runtime and LiteRT."""
    target = work / "bundles" / name
    if not (target / _TFLITE).exists():
        say(f"converting {name} ...")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        recipe = "static_wi8_au8_pc_minmax"
        command = [
            shutil.which("shallop-convert", path=str(Path(sys.executable).parent)) or "shallop-convert",
            "convert", str(model), *options, "--target", "x86-64-vnni", "--format", "both", "--quick",
            "--latency-samples", "30", "--candidates", f"onnxruntime/{recipe},ai_edge_litert/{recipe}_twin",
            "--name", "model", "--release", "update", "--quiet", "--output", str(target),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return target


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
