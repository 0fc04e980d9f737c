"""Every tool on one subject: its files, what they cost, and why one is missing.

For: driving each tool as its documentation says, with the same calibration samples, full-integer INT8 per
channel, float edges.
Not for: judging the files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from msgspec import Struct

from bench.converter.judging import Feeds
from bench.launching import ROOT, Launched, launch, reason
from bench.tflite.files import outline, placed

_OWN = (sys.executable, "-m", "bench.tflite.own")
_PEER_SECONDS_MAX = 900
_PICTURE_SIDE = 128
_PICTURES = 20
_SAMPLE_PICTURES = f"calibration_image_sample_data_{_PICTURES}x{_PICTURE_SIDE}x{_PICTURE_SIDE}x3_float32.npy"
"""onnx2tf downloads this file for any model of three-channel images, if it is not where it runs."""


class Made(Struct, frozen=True, kw_only=True):
    """What came of one tool.

    Attributes:
        content: its file; None where there is none.
        costs: of making it.
        note: why there is none, or what was said.
    """

    content: bytes | None = None
    costs: dict[str, object] = {}
    note: str = ""


class Subject(Struct, frozen=True, kw_only=True):
    """One model with its data, as `bench/converter/prepare.py` lays them out.

    Attributes:
        folder: with model.onnx, calibration.npz, validation.npz, test.npz and sla.yaml.
        calibration: single samples, as the ONNX model takes them.
        work: where the tools write.
    """

    folder: Path
    calibration: tuple[Feeds, ...]
    work: Path

    @property
    def batch(self) -> str:
        """Length of the model's free first axis: 1, or the frames of a clip."""
        return str(next(iter(self.calibration[0].values())).shape[0])


def shallop(subject: Subject, recipe: str) -> dict[str, Made]:
    """Our twin, our float file, and the ONNX file whose twin it is."""
    out = subject.work / "shallop"
    out.mkdir(parents=True, exist_ok=True)
    for old in ("float.onnx", "int8.onnx", "int8.tflite"):
        (out / old).unlink(missing_ok=True)
    whole = launch([*_OWN, "convert", subject.folder, out, recipe, subject.batch])
    made = {
        "shallop": _made(out / "int8.tflite", whole),
        "shallop_onnx": _made(out / "int8.onnx", whole),
        "shallop_float": _written(out / "float.onnx", out / "float.tflite", subject.batch),
    }
    alone = _written(out / "int8.onnx", out / "alone.tflite", subject.batch)
    command = _converting(subject, recipe)
    product = launch(command)
    costs = made["shallop"].costs | {
        "writer": alone.costs,
        "shallop_convert": product.costs
        | ({} if product.code in {0, 3} else {"note": reason(product.lines)}),
    }
    return made | {"shallop": Made(content=made["shallop"].content, costs=costs, note=made["shallop"].note)}


def _written(model: Path, file: Path, batch: str) -> Made:
    """A graph put through the writer alone."""
    file.unlink(missing_ok=True)
    if not model.is_file():
        return Made(note="not measured: the conversion gave no graph to write")
    ended = launch([*_OWN, "write", model, file, batch])
    made = _made(file, ended)
    seconds = json.loads(ended.lines[-1])["seconds"] if made.content is not None else None
    return Made(content=made.content, costs=made.costs | {"seconds_in_process": seconds}, note=made.note)


def _converting(subject: Subject, recipe: str) -> list[str | Path]:
    """As a user runs it, with one candidate; its time holds measuring it and writing the bundle."""
    folder = subject.folder
    return [
        Path(sys.executable).parent / "shallop-convert", folder / "model.onnx",
        "--calibration", folder / "calibration.npz", "--validation", folder / "validation.npz",
        "--target", "host", "--sla", folder / "sla.yaml", "--output", subject.work / "bundle",
        "--candidates", recipe, "--force", "--quiet",
    ]  # fmt: skip


def onnx2tf(subject: Subject, python: Path) -> dict[str, Made]:
    """Its INT8 file of full integers with float edges, and its float file.

    It writes float16, dynamic-range and int16 files in the same run; there is no switch for less.
    """
    here = subject.work / "onnx2tf"
    here.mkdir(parents=True, exist_ok=True)
    out = here / "out"
    for old in out.glob("*.tflite"):
        old.unlink()
    model = here / "model.onnx"
    # A copy, for it writes its simplified graph over the file that it is given.
    shutil.copyfile(subject.folder / "model.onnx", model)
    command: list[str | Path] = [
        python.parent / "onnx2tf", "-i", model, "-o", out, *_shapes(subject),
        "-oiqt", "-qt", "per-channel", "-iqd", "float32", "-oqd", "float32",
    ]  # fmt: skip
    for name in subject.calibration[0]:
        path = here / f"{len(command)}.npy"
        stacked = np.concatenate([_channels_last(feed[name]) for feed in subject.calibration])
        np.save(path, stacked)
        command += ["-cind", name, path, "0.0", "1.0"]
        _sample_pictures(here, stacked)
    search = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    variables = dict(os.environ) | {"PATH": search, "TF_CPP_MIN_LOG_LEVEL": "3"}
    ended = launch(command, cwd=here, environment=variables, seconds_max=_PEER_SECONDS_MAX)
    return {
        "onnx2tf": _made(out / "model_full_integer_quant.tflite", ended),
        "onnx2tf_float": _made(out / "model_float32.tflite", ended),
    }


def _shapes(subject: Subject) -> list[str]:
    """Words that fix what the model leaves free, and keep what is no image.

    With `-b 1` instead, residual networks fail; by itself it takes tokens for a signal with the channels
    first, and turns them.
    """
    given = onnx.load(str(subject.folder / "model.onnx"), load_external_data=False).graph.input
    shapes = {name: array.shape for name, array in subject.calibration[0].items()}
    free = any(not dim.dim_value for one in given for dim in one.type.tensor_type.shape.dim)
    fixed = [f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items()]
    kept = [name for name, shape in shapes.items() if len(shape) != 4]
    return [*(["-ois", *fixed] if free else []), *(["-kat", *kept] if kept else [])]


def _channels_last(array: np.ndarray) -> np.ndarray:
    """An image in TensorFlow's order of axes, anything else as it is."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def _sample_pictures(folder: Path, stacked: np.ndarray) -> None:
    """Our own pictures where onnx2tf looks for those that it would download to compare layers with."""
    if stacked.ndim != 4 or stacked.shape[-1] != 3:
        return
    rows, columns = (np.linspace(0, size - 1, _PICTURE_SIDE).astype(np.int64) for size in stacked.shape[1:3])
    few = stacked[np.arange(_PICTURES) % len(stacked)][:, rows][:, :, columns]
    np.save(folder / _SAMPLE_PICTURES, ((few - few.min()) / (few.max() - few.min())).astype(np.float32))


def litert_quantizer(subject: Subject, python: Path, float_file: bytes | None) -> dict[str, Made]:
    """INT8 files from Shallop's float file: with `min_max_update`, and as it does by itself."""
    names = {"litert_quantizer": "min_max", "litert_quantizer_default": "moving_average"}
    if float_file is None:
        return dict.fromkeys(
            names, Made(note="not measured: Shallop's float file, which it needs, is missing")
        )
    here = subject.work / "litert-quantizer"
    here.mkdir(parents=True, exist_ok=True)
    source, samples = here / "float.tflite", here / "calibration.npz"
    source.write_bytes(float_file)
    np.savez(samples, allow_pickle=False, **_laid_out(subject.calibration, float_file))
    made = {}
    for name, update in names.items():
        out = here / f"{update}.tflite"
        out.unlink(missing_ok=True)
        script = ROOT / "bench/tflite/quantizer_peer.py"
        made[name] = _made(
            out, launch([python, script, update, source, samples, out], seconds_max=_PEER_SECONDS_MAX)
        )
    return made


def _laid_out(feeds: tuple[Feeds, ...], file: bytes) -> dict[str, np.ndarray]:
    """The samples in the file's names and axes, stacked in front."""
    places = placed({name: array.shape for name, array in feeds[0].items()}, outline(file).inputs)
    return {
        place: np.stack([feed[name].transpose(axes) for feed in feeds])
        for name, (place, axes) in places.items()
    }


def _made(file: Path, ended: Launched) -> Made:
    if file.is_file():
        return Made(content=file.read_bytes(), costs=ended.costs)
    return Made(costs=ended.costs, note=f"not measured: {reason(ended.lines)}")
