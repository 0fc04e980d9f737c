"""TFLite variants in LiteRT, in this process: fed, asked and compared with their ONNX twins."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import helper

from agent.adapters.litert import EMPTY_MODEL, SIGNATURE, ai_edge_litert, quantized
from agent.errors import FinalError
from agent.worker import runtimes
from agent.worker.measuring import run_trial
from agent.worker.shards import model_inputs, read_samples
from agent.worker.timing import Runner
from converter.tflite import Options, write
from converter.tflite.schema import schema
from tests.agent.models import FAST, Array, linear, refused, samples, save, scores, value
from tests.agent.tflite import (
    IMAGE,
    SCALE_IN,
    Edge,
    Twins,
    answered,
    features,
    images,
    job_of,
    one_operator,
    pictures,
    quantized_product,
    rewritten,
    run_of,
    written,
)
from wire.bundle import InputData, Normalize, Scale, TensorSpec, input_key

LITERT, ORT = "ai-edge-litert", "onnxruntime"


def product(folder: Path) -> Twins:
    model = linear(folder / "model.onnx")
    return Twins(
        onnx=model, tflite=folder / "model.tflite", axes=written(folder / "model.tflite", model).axes
    )


# --- trials


@pytest.mark.parametrize(("candidate", "incumbent"), [(LITERT, ORT), (ORT, LITERT), (LITERT, LITERT)])
def test_twins_are_compared_on_the_same_samples_each_in_its_own_axes(
    tmp_path: Path, candidate: str, incumbent: str
) -> None:
    twins, other = images(tmp_path), images(tmp_path / "other", seed=2)
    x = pictures()
    result = run_trial(job_of(tmp_path, twins, x, candidate, run_of(other, incumbent)))
    assert result.notes == ()
    assert result.conformance is not None
    assert (result.conformance.n, result.conformance.equal) == (30, 1.0)
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0
    # The other model's own answers, by a door of its own to the runtime.
    theirs = answered(other, x) if incumbent == LITERT else scores(other.onnx, x)
    right = int((theirs.argmax(axis=1) == scores(twins.onnx, x).argmax(axis=1)).sum())
    assert 0 < right < 30
    assert result.against_incumbent is not None
    assert (result.against_incumbent.both, result.against_incumbent.candidate_only) == (right, 30 - right)
    for latency in (result.latency, result.incumbent_latency):
        assert latency is not None
        assert latency.n == FAST.latency_runs
    assert result.latency_ratio_to_incumbent is not None
    assert result.latency_ratio_to_incumbent.n == FAST.latency_runs
    assert result.runtime == candidate


def test_raw_samples_are_preprocessed_in_the_releases_axes_and_then_laid_out(tmp_path: Path) -> None:
    twins = images(tmp_path)
    raw = np.random.default_rng(3).integers(0, 256, (20, *IMAGE), np.uint8)
    mean, std = np.array([0.4, 0.6], np.float32), np.array([0.2, 0.3], np.float32)
    x = (raw.astype(np.float32) * np.float32(1 / 255) - mean[:, None, None]) / std[:, None, None]
    job = job_of(tmp_path, twins, x, LITERT, run_of(twins, ORT))
    steps = (Scale(factor=1 / 255), Normalize(mean=(0.4, 0.6), std=(0.2, 0.3)))
    job = replace(job, data={"x": InputData(stored="raw", layout="NCHW", preprocessing=steps)})
    shard = Path(job.shards[0])
    with np.load(shard) as archive:
        arrays = {**archive, input_key("x"): raw}
    with shard.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    result = run_trial(job)
    assert result.conformance is not None
    assert result.conformance.same_answer == 1.0
    assert result.against_incumbent is not None
    assert result.against_incumbent.both == 20


@pytest.mark.parametrize("edge", ["float32", "int8", "uint8"])
def test_a_file_of_integers_is_fed_and_read_by_its_own_scales(tmp_path: Path, edge: Edge) -> None:
    twins = quantized_product(tmp_path, edge)
    x = features()
    result = run_trial(job_of(tmp_path, twins, x, LITERT, run_of(twins, ORT)))
    assert result.notes == ()
    assert result.conformance is not None
    assert result.conformance.equal == 1.0
    # ONNX Runtime computes the very same integers.
    np.testing.assert_array_equal(answered(twins, x), scores(twins.onnx, x))
    session = ai_edge_litert().load(str(twins.tflite), 1, {})
    assert session.prepare({"x": x})["x"].dtype == np.dtype(edge)
    assert session.finish(session.run(session.prepare({"x": x[:1]})))["y"].dtype == np.float32


def convolution(folder: Path) -> Twins:
    """Pictures in, pictures out."""
    kernel = np.random.default_rng(0).standard_normal((3, IMAGE[0], 3, 3)).astype(np.float32)
    model = save(
        folder / "model.onnx", [helper.make_node("Conv", ["x", "k"], ["y"])], {"k": kernel},
        inputs=[value("x", ["N", *IMAGE])], outputs=[value("y", ["N", 3, 4, 3])],
    )  # fmt: skip
    return Twins(
        onnx=model, tflite=folder / "model.tflite", axes=written(folder / "model.tflite", model).axes
    )


@pytest.mark.parametrize(("candidate", "incumbent"), [(LITERT, ORT), (ORT, LITERT)])
def test_outputs_are_compared_in_the_releases_axes(tmp_path: Path, candidate: str, incumbent: str) -> None:
    twins = convolution(tmp_path)
    assert set(twins.axes) == {"x", "y"}
    job = job_of(tmp_path, twins, pictures(), candidate, run_of(twins, incumbent))
    outputs = (TensorSpec(name="y", dtype="float32", shape=(None, 3, 4, 3)),)
    result = run_trial(replace(job, task="regression", outputs=outputs))
    assert result.notes == ()
    assert result.conformance is not None
    assert result.conformance.equal == 1.0
    assert result.agreement is not None
    assert result.agreement.value > 0.999


def test_an_output_of_another_rank_than_its_axes_is_refused(tmp_path: Path) -> None:
    twins = convolution(tmp_path)
    job = job_of(tmp_path, twins, pictures(4), LITERT)
    outputs = (TensorSpec(name="y", dtype="float32", shape=()),)
    job = replace(job, task="regression", outputs=outputs)
    run = replace(job.candidate, axes={**twins.axes, "y": (0, 2, 1)})
    words = refused(replace(job, candidate=run), "output_mismatch")
    assert "output y is [1, 4, 3, 3], the variant names 3 axes of it" in words


# --- what cannot be measured


def test_samples_of_another_shape_are_told_with_what_the_file_takes(tmp_path: Path) -> None:
    job = job_of(tmp_path, images(tmp_path), pictures(), LITERT)
    words = refused(replace(job, candidate=replace(job.candidate, axes={})), "output_mismatch")
    assert "input x is [None, 2, 6, 5] by the release, the file takes [1, 6, 5, 2]" in words
    assert "axes" in words


def test_a_file_of_a_larger_batch_answers_for_one_sample(tmp_path: Path) -> None:
    twins = images(tmp_path)
    three = tmp_path / "three.tflite"
    three.write_bytes(write(onnx.load(twins.onnx), Options(batch=3)).content)
    x = np.ascontiguousarray(pictures(1).transpose(0, 2, 3, 1))
    found = []
    for path in (twins.tflite, three):
        session = ai_edge_litert().load(str(path), 1, {})
        found.append(session.finish(session.run(session.prepare({"x": x})))["y"])
    assert found[0].shape == found[1].shape
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    result = run_trial(job_of(tmp_path, replace(twins, tflite=three), pictures(), LITERT))
    assert result.accuracy == run_trial(job_of(tmp_path, twins, pictures(), LITERT)).accuracy


def test_an_incumbent_in_unknown_axes_is_a_note(tmp_path: Path) -> None:
    twins = images(tmp_path)
    adopted = replace(run_of(twins, LITERT), axes={})
    result = run_trial(job_of(tmp_path, twins, pictures(), ORT, adopted))
    assert result.accuracy is not None
    assert len(result.notes) == 1
    assert "the file takes [1, 6, 5, 2]" in result.notes[0]


def test_session_entries_are_refused_by_name(tmp_path: Path) -> None:
    job = job_of(tmp_path, product(tmp_path), samples(), LITERT)
    entries = {"session.x64quantprecision": "1"}
    words = refused(
        replace(job, candidate=replace(job.candidate, session_config=entries)), "model_load_failed"
    )
    assert "session.x64quantprecision" in words
    assert LITERT in words


@pytest.mark.parametrize("damage", [b"", b"no model", None])
def test_a_damaged_file_does_not_load(tmp_path: Path, damage: bytes | None) -> None:
    twins = product(tmp_path)
    job = job_of(tmp_path, twins, samples(), LITERT)
    data = twins.tflite.read_bytes()
    twins.tflite.write_bytes(data[: len(data) // 2] if damage is None else damage)
    assert "not opened" in refused(job, "model_malformed")


def test_a_file_that_is_not_there_does_not_load(tmp_path: Path) -> None:
    twins = product(tmp_path)
    job = job_of(tmp_path, twins, samples(), LITERT)
    twins.tflite.unlink()
    refused(job, "model_load_failed")


def test_a_model_that_fails_while_it_runs(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "model.tflite", "DIV", {"x": "INT32", "y": "INT32"}, inputs=(0, 0))
    session = ai_edge_litert().load(str(path), 1, {})
    assert session.run({"x": np.array([[7]], np.int32)})["y"] == 1
    with pytest.raises(FinalError, match=r"ai-edge-litert 2\.") as raised:
        session.run({"x": np.array([[0]], np.int32)})
    assert raised.value.code == "model_run_failed"


def test_an_operator_that_the_library_does_not_run_as_it_is_does_not_load(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "model.tflite", "CALL_ONCE", {"x": "FLOAT32", "y": "FLOAT32"})
    with pytest.raises(FinalError) as raised:
        ai_edge_litert().load(str(path), 1, {})
    assert raised.value.code == "model_load_failed"


def test_another_models_file_is_refused_by_its_names(tmp_path: Path) -> None:
    twins = product(tmp_path)

    def renamed(model: Any) -> None:  # noqa: ANN401 - the schema's classes have no types
        model.signatureDefs[0].inputs[0].name = "pixels"

    job = job_of(tmp_path, twins, samples(), LITERT)
    rewritten(twins.tflite, renamed)
    assert "['pixels']" in refused(job, "output_mismatch")


# --- names and types at the edges


@pytest.mark.parametrize("signature", [SIGNATURE, "other", None])
def test_names_are_the_signatures_else_the_tensors(tmp_path: Path, signature: str | None) -> None:
    def change(model: Any) -> None:  # noqa: ANN401 - the schema's classes have no types
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].name = "tensor_in"
        if signature is None:
            model.signatureDefs = []
        else:
            model.signatureDefs[0].signatureKey = signature

    path = rewritten(product(tmp_path).tflite, change)
    session = ai_edge_litert().load(str(path), 1, {})
    assert session.input_names == (("x",) if signature == SIGNATURE else ("tensor_in",))
    assert session.output_names == ("y",)


@pytest.mark.parametrize(
    ("dtype", "given_", "fits"),
    [
        ("FLOAT32", np.array([[1.5]], np.float64), True),
        ("INT32", np.array([[7]], np.int64), True),
        ("INT32", np.array([[2**40]], np.int64), False),
        ("INT32", np.array([[1.0]], np.float32), False),
        ("FLOAT32", np.array([[1]], np.int32), False),
        ("INT64", np.array([[2**40]], np.int64), True),
    ],
)
def test_a_files_types_are_met_where_no_value_is_lost(
    tmp_path: Path, dtype: str, given_: Array, fits: bool
) -> None:
    path = one_operator(tmp_path / "model.tflite", "NEG", {"x": dtype, "y": dtype})
    session = ai_edge_litert().load(str(path), 1, {})
    if fits:
        assert session.finish(session.run(session.prepare({"x": given_})))["y"] == -given_
        return
    with pytest.raises(FinalError, match="input x") as raised:
        session.prepare({"x": given_})
    assert raised.value.code == "output_mismatch"


REALS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20)


@given(REALS, st.floats(2.0**-10, 2.0, width=32), st.integers(-128, 127), st.sampled_from(["int8", "uint8"]))
def test_reals_become_the_nearest_step_ties_to_even(
    reals: list[float], scale: float, zero: int, kind: str
) -> None:
    dtype = np.dtype(kind)
    limits = np.iinfo(dtype)
    found = quantized(np.array(reals, np.float32), scale, zero, dtype)
    assert found.dtype == dtype
    for real, step in zip(reals, found.tolist(), strict=True):
        # The quotient in float32, as both formats define it; the rest exact.
        quotient = Fraction(float(np.float32(real) / np.float32(scale)))
        assert step == min(max(round(quotient) + zero, int(limits.min)), int(limits.max))


def test_integers_are_what_onnx_computes() -> None:
    """A tie on every odd step, and values far outside."""
    x = (np.arange(-900, 901, dtype=np.float32) * np.float32(0.5) * SCALE_IN)[:, None]
    found = quantized(x, float(SCALE_IN), 120, np.dtype("uint8"))
    steps = np.array([round(Fraction(float(v))) for v in (x / SCALE_IN).ravel()]) + 120
    np.testing.assert_array_equal(found.ravel(), np.clip(steps, 0, 255))


# --- axes


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))
    ),
    st.integers(1, 4), st.booleans(), st.booleans(),
)  # fmt: skip
def test_each_sample_is_transposed_by_itself(
    shape_and_axes: tuple[list[int], list[int]], n: int, whole: bool, fresh: bool
) -> None:
    shape, axes = shape_and_axes
    shape = shape if whole else [1, *shape[1:]]
    stored = np.arange(n * int(np.prod(shape)), dtype=np.float32).reshape(
        [n, *(shape if whole else shape[1:])]
    )
    before = stored.copy()
    data = InputData(
        stored="raw" if fresh else "model_input",
        preprocessing=(Scale(factor=2.0),) if fresh else (),
        sample_axis=None if whole else 0,
    )
    spec = TensorSpec(name="x", dtype="float32", shape=tuple(shape))
    found = model_inputs({"x": stored}, (spec,), {"x": data}, {"x": tuple(axes)})["x"]
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(stored, before)
    for sample, mine in zip(before, found, strict=True):
        tensor = (sample if whole else sample[None]) * (2 if fresh else 1)
        np.testing.assert_array_equal(mine, tensor.transpose(axes))


def test_inputs_without_axes_stay_as_they_are(tmp_path: Path) -> None:
    job = job_of(tmp_path, product(tmp_path), samples(), LITERT)
    read = read_samples(job)
    assert read.inputs["x"] is read.stored["x"]


def test_a_scalar_input_is_an_array_too(tmp_path: Path) -> None:
    session = ai_edge_litert().load(str(product(tmp_path).tflite), 1, {})
    runner = Runner(session=session, inputs={"s": np.arange(3.0)}, whole=frozenset({"s"}))
    one = runner.one(4)["s"]
    assert isinstance(one, np.ndarray)
    assert (one.shape, float(one)) == ((), 1.0)


# --- the library


def test_the_file_that_probes_a_library_is_an_empty_model() -> None:
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.inputs = graph.outputs = graph.tensors = graph.operators = model.operatorCodes = []
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(64)
    builder.Finish(model.Pack(builder), b"TFL3")
    assert bytes(builder.Output()) == EMPTY_MODEL


def test_the_two_libraries_do_not_stand_in_for_one_another(tmp_path: Path) -> None:
    job = job_of(tmp_path, product(tmp_path), samples(), LITERT)
    other = replace(job, candidate=replace(job.candidate, runtime="tflite-runtime"))
    words = refused(other, "runtime_missing")
    assert "pip install 'shallop[tflite-runtime]'" in words


@pytest.mark.parametrize("name", ["onnxruntime", "ai-edge-litert"])
def test_a_runtime_is_found_by_its_name(name: str) -> None:
    assert runtimes.find(name).load.__doc__
