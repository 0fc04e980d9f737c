"""Data sets and models that somebody else hands to whoever converts: nothing leaves or enters the folder."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.agent.models import linear, samples, scores
from tests.conftest import ROOT

SECRET = "the operator's own file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, its sets, and beside them something that is nobody's business."""
    (tmp_path / "secret.txt").write_text(SECRET)
    inside = tmp_path / "handed-over"
    linear(inside / "model.onnx")
    x = samples()
    np.savez(inside / "calib.npz", x=x)
    np.savez(inside / "valid.npz", x=x, labels=scores(inside / "model.onnx", x).argmax(axis=1))
    (inside / "sla.yaml").write_text("accuracy: {min_fraction_of_baseline: 0.5}\n")
    return inside


def convert(folder: Path) -> tuple[int, str]:
    """Exit status and what was said; in 4 GiB of memory."""
    command = [
        sys.executable, "-m", "converter.cli", "convert", "model.onnx", "--calibration", "calib.npz",
        "--validation", "valid.npz", "--sla", "sla.yaml", "--output", "out", "--target", "host",
    ]  # fmt: skip
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def refused(folder: Path, code: str) -> None:
    before = {path for path in folder.parent.rglob("*") if "out" not in path.parts}
    status, said = convert(folder)
    assert status != 0
    assert code in said, said[-600:]
    assert SECRET not in said
    assert {path for path in folder.parent.rglob("*") if "out" not in path.parts} == before


def archive(path: Path, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries.items():
            target.writestr(name, data)


def array(values: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, values, allow_pickle=True)
    return target.getvalue()


def test_a_set_whose_names_lead_out(folder: Path) -> None:
    archive(folder / "calib.npz", **{"../../escaped.npy": array(samples()), "x.npy": array(samples())})
    refused(folder, "calibration_names")


def test_a_set_that_holds_code(folder: Path) -> None:
    archive(folder / "calib.npz", **{"x.npy": array(np.array([{"an": "object"}], object))})
    refused(folder, "calibration_malformed")


def test_a_set_that_is_a_bomb(folder: Path) -> None:
    """A head that promises a terabyte; and zeros that unpack to more than is ever read."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**38, 8)})
    archive(folder / "calib.npz", **{"x.npy": head.getvalue()})
    refused(folder, "calibration_malformed")


def test_a_set_that_is_a_link_to_something_else(folder: Path) -> None:
    """A link is followed, as any path is; what it leads to is refused by name, and none of it is shown."""
    (folder / "calib.npz").unlink()
    (folder / "calib.npz").symlink_to("../secret.txt")
    refused(folder, "calibration_malformed")


@pytest.mark.parametrize("location", ["../secret.txt", "link.bin"])
def test_a_model_that_reads_files_outside(folder: Path, location: str) -> None:
    """ONNX lets a weight lie in another file; one that leads out of the folder is not read."""
    (folder / "link.bin").symlink_to("../secret.txt")
    model = onnx.load(folder / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    refused(folder, "model_")
    assert json.dumps(SECRET) not in "".join(p.read_text(errors="replace") for p in folder.rglob("out/*"))
