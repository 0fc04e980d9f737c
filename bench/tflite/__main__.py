"""`python -m bench.tflite --shared ../shared/models`: prints JSON, progress and a table on standard error.

The tools live in environments of their own, made on the first run under `.bench/` (about 3.4 GB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import onnx

from bench.converter.judging import subject_feeds
from bench.launching import ROOT
from bench.tflite.environments import PACKAGES, environment, installed_mb, version
from bench.tflite.judging import judge
from bench.tflite.synthetic import SYNTHETIC, lay_out
from bench.tflite.table import table
from bench.tflite.tools import Subject, litert_quantizer, onnx2tf, shallop

_SUBJECTS = ("fashion_ds", "fashion_mnv3", "fashion_hostile2", "effnet_lite0", *SYNTHETIC, "audio_vad")
_RECIPE = "static_wi8_au8_pc_auto_twin"
_WEIGHED = ("shallop", "onnx2tf", "litert-quantizer")


def main() -> int:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.tflite", description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--environments", type=Path, default=ROOT / ".bench" / "tflite-tools")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "tflite")
    parser.add_argument("--only", default=",".join(_SUBJECTS), help="subjects, separated by commas")
    parser.add_argument("--recipe", default=_RECIPE, help="of Shallop's twin")
    options = parser.parse_args()
    pythons = {name: environment(options.environments, name) for name in PACKAGES}
    _laid_out(options.work, pythons["data"], options.shared)
    figures = {}
    for name in options.only.split(","):
        figures[name] = _subject(options.work / name, pythons, options.recipe)
        _say(json.dumps({name: figures[name]}, indent=1))
    _say(table(figures))
    print(
        json.dumps({"tflite": {"tools": _tools(options.environments, pythons), "models": figures}}, indent=1)
    )
    return 0


def _laid_out(work: Path, python: Path, shared: Path) -> None:
    """Models and data as the tools take them; once for a work folder."""
    done = work / ".laid-out"
    if done.exists():
        return
    _say("laying out models and data ...")
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, ROOT / "bench/converter/prepare.py", shared, work], check=True)
    lay_out(work)
    done.touch()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tools(folder: Path, pythons: dict[str, Path]) -> dict[str, dict[str, object]]:
    """Each tool-chain's version and weight."""
    return {
        name: {"version": version(pythons[name], name), "installed_mb": installed_mb(folder / name)}
        for name in _WEIGHED
    }


def _subject(folder: Path, pythons: dict[str, Path], recipe: str) -> dict[str, dict[str, object]]:
    """All tools on one model."""
    work = folder / "tools"
    subject = Subject(folder=folder, calibration=tuple(subject_feeds(folder, part="calibration")), work=work)
    _say(f"{folder.name}: shallop ...")
    ours = shallop(subject, recipe)
    _say(f"{folder.name}: litert-quantizer ...")
    quantized = litert_quantizer(subject, pythons["litert-quantizer"], ours["shallop_float"].content)
    _say(f"{folder.name}: onnx2tf ...")
    converted = onnx2tf(subject, pythons["onnx2tf"])
    _say(f"{folder.name}: judging ...")
    answer = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.output[0].name
    return judge(folder, ours | converted | quantized, answer)


if __name__ == "__main__":
    sys.exit(main())
