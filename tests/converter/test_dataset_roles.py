"""Whole samples, state, constants, right answers by task, and the split that may be searched on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from onnx import TensorProto, helper

from converter.dataset import Samples, read_description, read_samples, split
from converter.errors import InputError
from converter.evaluate import outputs_of
from converter.inputs import read_inputs, utc_now
from converter.model import Signature, signature
from converter.pipeline import run
from converter.truth import checked_truth
from tests.converter.builders import Workshop, images
from wire.tasks import Kind

ROLES = "inputs: {x: {sample_axis: null}, h: {role: state}, k: {role: constant}}\nanswer: {frames: true}\n"


def running_sum() -> bytes:
    """`[T,2]` with state `[1,2]` and a factor `[1,2]` to `[T]`: k * (h + cumulative sum), added up."""
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["sum"]),
        helper.make_node("Add", ["sum", "h"], ["moved"]),
        helper.make_node("Mul", ["moved", "k"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axes"], ["y"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [], [0]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
    ]
    graph = helper.make_graph(
        nodes, "sum",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 2]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, [1, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T"])], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def _signature(content: bytes) -> Signature:
    import onnx  # noqa: PLC0415

    return signature(onnx.load_model_from_string(content))


def test_a_recurrent_model_is_run_on_whole_samples(tmp_path: Path) -> None:
    content = running_sum()
    x = np.random.default_rng(1).normal(size=(5, 7, 2)).astype(np.float32)
    factor = np.array([[1.0, 3.0]], np.float32)
    np.savez(tmp_path / "v.npz", x=x, k=factor, labels=np.zeros((5, 7), np.int64))
    (tmp_path / "dataset.yaml").write_text(ROLES)
    described = read_description(tmp_path / "dataset.yaml")
    samples = read_samples(tmp_path / "v.npz", described, _signature(content), labelled=True)
    found = outputs_of(content, {}, samples, ("y",))["y"]
    np.testing.assert_allclose(found, (x.cumsum(axis=1) * factor).sum(axis=2), rtol=1e-5)
    assert [feeds["x"].shape for feeds in samples.batches(4)] == [(7, 2)] * 5
    with pytest.raises(RuntimeError, match="no batch"):
        samples.feeds(0, 2)


def test_what_a_whole_sample_must_look_like(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((5, 7, 3), np.float32), k=np.zeros((1, 2), np.float32))
    (tmp_path / "dataset.yaml").write_text(ROLES)
    described = read_description(tmp_path / "dataset.yaml")
    with pytest.raises(InputError, match=r"\[7, 3\], the model takes \[any, 2\]"):
        read_samples(tmp_path / "c.npz", described, _signature(running_sum()), labelled=False)


@pytest.mark.parametrize(
    ("kind", "truth", "words"),
    [
        ("classification", {"labels": np.zeros((4, 2, 2), np.int64)}, "one integer a sample"),
        ("embedding", {"labels": np.zeros((4, 2), np.int64)}, "one integer a sample"),
        ("regression", {"labels": np.full(4, np.nan)}, "NaN"),
        ("detection", {"boxes": np.zeros((4, 2, 4)), "classes": np.zeros((4, 3), np.int64)}, r"\[N,M,4\]"),
        ("detection", {"boxes": np.zeros((4, 2, 4)), "classes": np.zeros((4, 2))}, "-1 where"),
        ("custom", {"mine": np.zeros((3, 2))}, "3 mine for 4 samples"),
        ("custom", {"mine": np.array(1.0)}, "first axis samples"),
    ],
)
def test_right_answers_that_do_not_fit_the_task(kind: Kind, truth: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked_truth(Path("v.npz"), kind, truth, 4)


def _samples(n: int) -> Samples:
    labels = np.arange(n)
    return Samples(
        path="here", sha256="0" * 64, arrays={"image": images(n)}, data={}, n=n, labels=labels,
        truth={"labels": labels},
    )  # fmt: skip


def test_the_split_shares_no_sample_and_is_always_the_same() -> None:
    judging, searched = split(_samples(50), 0.3)
    assert (judging.n, searched.n) == (35, 15)
    assert judging.labels is not None
    assert searched.labels is not None
    assert sorted([*judging.labels, *searched.labels]) == list(range(50))
    np.testing.assert_array_equal(searched.arrays["image"], images(50)[searched.labels])
    again, _ = split(_samples(50), 0.3)
    np.testing.assert_array_equal(again.known["labels"], judging.known["labels"])
    with pytest.raises(InputError, match="one side empty"):
        split(_samples(2), 0.1)


def test_what_is_searched_on_does_not_judge(workshop: Workshop) -> None:
    with pytest.raises(InputError, match="cannot judge") as caught:
        read_inputs(structs.replace(workshop.options(), search=workshop.validation), utc_now())
    assert caught.value.code == "search_is_validation"
    (workshop.folder / "dataset.yaml").write_text("search_fraction: 0.25\n")
    inputs = read_inputs(workshop.options(), utc_now())
    assert inputs.search is not None
    assert (inputs.validation.n, inputs.search.n) == (90, 30)


def test_a_regression_goes_through_to_a_bundle(workshop: Workshop) -> None:
    with np.load(workshop.validation) as stored:
        image = stored["image"]
    noise = np.random.default_rng(3).normal(size=(len(image), 4))
    np.savez(workshop.validation, image=image, labels=noise)
    with pytest.raises(InputError, match="lower is better") as caught:
        run(workshop.options())
    assert caught.value.code == "sla_direction"
    workshop.sla.write_text("accuracy: {max_ratio_to_baseline: 1.2}\n")
    done = run(workshop.options())
    assert done.manifest is not None
    assert (done.manifest.task, done.manifest.metric.name) == ("regression", "mae")
    assert done.report.task_reason == "inferred: the labels are real numbers"
    row = done.report.candidates[1]
    assert row.accuracy_words is not None
    assert row.accuracy_words.startswith("mae: ")
    assert row.accuracy_ci95 is not None
    assert row.metrics["rmse"].value >= (row.accuracy or 0.0)


def test_frames_must_be_said(workshop: Workshop) -> None:
    (workshop.folder / "dataset.yaml").write_text("answer: {output: other}\n")
    with pytest.raises(InputError, match="names output other"):
        read_inputs(workshop.options(), utc_now())
