"""A recurrent model whose sample is a whole sequence goes through every stage, states and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from converter.inputs import Options
from converter.pipeline import run
from converter.runtime import open_session
from tests.converter.builders import weights

FRAMES, WIDTH = 12, 16


def _recurrent() -> onnx.ModelProto:
    """`[T,16]` frames and a state `[1,1,8]` to a score of every frame `[T]` and the next state."""
    rng = np.random.default_rng(3)
    constants = [
        weights(rng, "wx", WIDTH, 24), weights(rng, "w", 1, 32, 24), weights(rng, "r", 1, 32, 8),
        weights(rng, "v", 8, 1),
    ]  # fmt: skip
    constants += [
        onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name)
        for name, values in {"one": [1], "both": [1, 2], "last": [1]}.items()
    ]
    constants.append(onnx.numpy_helper.from_array(np.zeros((1, 1, 8), dtype=np.float32), "cell"))
    nodes = [
        helper.make_node("MatMul", ["frames", "wx"], ["m"]),
        helper.make_node("Relu", ["m"], ["f"]),
        helper.make_node("Unsqueeze", ["f", "one"], ["s"]),
        helper.make_node("LSTM", ["s", "w", "r", "", "", "h", "cell"], ["y", "hn"], hidden_size=8),
        helper.make_node("Squeeze", ["y", "both"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["scores"]),
        helper.make_node("Squeeze", ["scores", "last"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["speech"]),
    ]
    graph = helper.make_graph(
        nodes, "recurrent",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["T", WIDTH]),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 1, 8])],
        [helper.make_tensor_value_info("speech", TensorProto.FLOAT, ["T"]),
         helper.make_tensor_value_info("hn", TensorProto.FLOAT, [1, 1, 8])], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def test_every_stage_takes_whole_samples(tmp_path: Path) -> None:
    made = _recurrent()
    (tmp_path / "vad.onnx").write_bytes(made.SerializeToString())
    rng = np.random.default_rng(7)
    clips = rng.normal(0, 1, (40, FRAMES, WIDTH)).astype(np.float32)
    session, state = open_session(made.SerializeToString()), np.zeros((1, 1, 8), dtype=np.float32)
    scores = np.stack([session.run(["speech"], {"frames": clip, "h": state})[0] for clip in clips])
    np.savez(tmp_path / "calibration.npz", frames=clips)
    np.savez(tmp_path / "validation.npz", frames=clips, labels=(scores > 0.5).astype(np.int64))
    (tmp_path / "dataset.yaml").write_text(
        "task: classification\nanswer: {frames: true}\n"
        "inputs: {frames: {sample_axis: null}, h: {role: state}}\n"
    )
    (tmp_path / "sla.yaml").write_text("accuracy: {min_fraction_of_baseline: 0.9}\n")
    report = run(
        Options(
            model=tmp_path / "vad.onnx",
            calibration=tmp_path / "calibration.npz",
            validation=tmp_path / "validation.npz",
            target="x86_vnni",
            sla=tmp_path / "sla.yaml",
            output=tmp_path / "bundle",
            latency_samples=30,
        )
    ).report
    rows = {row.recipe: row for row in report.candidates if row.runtime == "onnxruntime"}
    assert report.baseline.accuracy == 1.0
    assert {name: row.reason for name, row in rows.items() if row.status == "error"} == {}
    assert {"static_wi8_au8_pc_auto", "static_wi8_au8_pc_auto_cle_bc", "dynamic_wi8_af32"} <= set(rows)
    assert report.calibration["n_samples"] == 40
    assert report.sensitivity
