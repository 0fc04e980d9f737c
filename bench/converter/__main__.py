"""`python -m bench.converter --shared ../shared/models`: prints JSON, a table on standard error.

The peers live in an environment of their own, made on the first run under `.bench/` (about 480 MB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.converter.judging import answers, latency, quality, subject_feeds
from bench.launching import timed

ROOT = Path(__file__).parents[2]
_PEERS = ("nncf", "onnx", "onnxruntime", "sympy", "pillow", "scipy")
_TOOLS = ("ort_expert", "ort_defaults", "nncf", "nncf_mixed")
_SUBJECTS = ("fashion_ds", "fashion_mnv3", "fashion_hostile2", "effnet_lite0", "audio_vad", "minilm")


def main() -> int:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.converter", description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--minilm", type=Path, help="the ONNX file that shared/models' make_minilm.py builds")
    parser.add_argument("--peers", type=Path, default=ROOT / ".bench" / "peers", help="their environment")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "converter")
    parser.add_argument("--only", default=",".join(_SUBJECTS), help="subjects, separated by commas")
    options = parser.parse_args()
    python = _peers(options.peers)
    _say("laying out models and data ...")
    given = [] if options.minilm is None else [options.minilm]
    subprocess.run(
        [python, ROOT / "bench/converter/prepare.py", options.shared, options.work, *given], check=True
    )
    figures: dict[str, dict[str, object]] = {}
    for name in options.only.split(","):
        folder = options.work / name
        if not (folder / "model.onnx").is_file():
            figures[name] = {"skipped": "its model was not given (see --minilm)"}
            continue
        figures[name] = _subject(folder, python, options.shared)
        _say(json.dumps({name: figures[name]}, indent=1))
    print(json.dumps({"converter": figures}, indent=1))
    return 0


def _peers(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        _say(f"installing {', '.join(_PEERS)} into {folder} ...")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_PEERS], check=True)
    return python


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _subject(folder: Path, python: Path, shared: Path) -> dict[str, object]:
    """All tools on one model."""
    costs: dict[str, dict[str, object]] = {}
    models = {"fp32": (folder / "model.onnx").read_bytes()}
    notes: dict[str, str] = {}
    _say(f"{folder.name}: shallop ...")
    costs["shallop"], notes["shallop"] = timed(_shallop_command(folder))
    chosen = _chosen(folder)
    if chosen is not None:
        models["shallop"] = chosen[1]
        notes["shallop"] = chosen[0]
    cleaned = _cleaned(folder)
    for tool in _TOOLS:
        _say(f"{folder.name}: {tool} ...")
        out = folder / f"{tool}.onnx"
        out.unlink(missing_ok=True)
        command = [
            python, ROOT / "bench/converter/peers.py", tool, folder / "model.onnx",
            folder / "calibration.npz", out, cleaned,
        ]  # fmt: skip
        costs[tool], notes[tool] = timed([str(part) for part in command])
        if out.is_file():
            models[tool] = out.read_bytes()
    feeds = subject_feeds(folder)
    head = _head(shared) if folder.name == "minilm" else None
    found = {}
    for name, model in list(models.items()):
        try:
            found[name] = answers(model, feeds)
        except Exception as error:  # noqa: BLE001 - a peer's model that does not run is a row
            notes[name] = f"does not run: {error}"[:300]
            del models[name]
    judged = quality(folder, found, head)
    durations = latency(models, feeds[:64])
    return {
        name: {
            "size_bytes": len(models[name]) if name in models else None,
            **judged.get(name, {}), **durations.get(name, {}), **costs.get(name, {}),
            "note": notes.get(name, ""),
        }
        for name in ("fp32", "shallop", *_TOOLS)
    }  # fmt: skip


def _shallop_command(folder: Path) -> list[str]:
    """As a user of ONNX Runtime runs it; its time holds measuring every candidate and writing the bundle.

    The peers write ONNX alone; files for LiteRT are compared in bench/tflite.
    """
    return [
        str(Path(sys.executable).parent / "shallop-convert"), str(folder / "model.onnx"),
        "--calibration", str(folder / "calibration.npz"), "--validation", str(folder / "validation.npz"),
        "--target", "host", "--sla", str(folder / "sla.yaml"), "--output", str(folder / "bundle"),
        "--format", "onnx", "--force", "--quiet",
    ]  # fmt: skip


def _chosen(folder: Path) -> tuple[str, bytes] | None:
    path = folder / "bundle" / "candidates.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    row = next((one for one in report["candidates"] if one["id"] == report["chosen"]), None)
    if row is None:
        return None
    model = folder / "bundle" / "variants" / row["recipe"] / "model.onnx"
    return f"{row['recipe']}, int8 share {row['int8_fraction']}", model.read_bytes()


def _cleaned(folder: Path) -> Path:
    """The graph that the expert quantizes: the FP32 variant of the bundle, which is the cleaned one."""
    kept = folder / "bundle" / "variants" / "float_wf32_af32" / "model.onnx"
    return kept if kept.is_file() else folder / "model.onnx"


def _head(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(shared / "text_wordnet" / "head.npz") as held:
        return held["W"], held["b"]


if __name__ == "__main__":
    sys.exit(main())
