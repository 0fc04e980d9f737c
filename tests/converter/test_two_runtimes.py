"""A whole conversion for both runtimes: one calibration, two files, rows that are judged alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import helper

from converter.candidates import Candidate
from converter.dataset import Samples
from converter.errors import InputError
from converter.inputs import Options
from converter.litert import open_session
from converter.making import METADATA_NAME, at_the_samples_shape
from converter.pipeline import Conversion, run
from converter.recipe import RecipeNameError
from tests.converter.builders import Workshop, conv_net, model, weights
from wire.bundle import InputData, host_key, input_key
from wire.tflite_walk import metadata_of, tensor_spans

_TWIN = "static_wi8_au8_pc_minmax_twin"
_LITERT = f"ai_edge_litert/{_TWIN}"
_ALL = ("static_wi8_au8_pc_minmax", _TWIN, "ai_edge_litert/float_wf32_af32", "ai_edge_litert/float_wf16_af16",
        "ai_edge_litert/dynamic_wi8_af32_pc")  # fmt: skip
_FIGURES = ("size_bytes", "accuracy", "accuracy_ci95", "agreement", "entropy_bytes", "sha256", "fusion",
            "int8_fraction", "latency_ratio", "latency_ratio_ci95", "cold_load_ms")  # fmt: skip


def _options(workshop: Workshop, **changed: object) -> Options:
    return structs.replace(workshop.options(), **({"candidates": _ALL} | changed))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    workshop = Workshop(tmp_path_factory.mktemp("both"))
    (workshop.folder / "dataset.yaml").write_text("labels: [a, b, c, d]\n")
    return run(_options(workshop))


def _rows(conversion: Conversion) -> dict[str, Candidate]:
    return {row.id: row for row in conversion.report.candidates}


def test_one_graph_gives_a_row_for_each_runtime(both: Conversion) -> None:
    rows = _rows(both)
    assert list(rows) == [
        "onnxruntime/float_wf32_af32", "onnxruntime/static_wi8_au8_pc_minmax", f"onnxruntime/{_TWIN}",
        _LITERT, "ai_edge_litert/float_wf32_af32", "ai_edge_litert/float_wf16_af16",
        "ai_edge_litert/dynamic_wi8_af32_pc",
    ]  # fmt: skip
    assert {row.status for row in rows.values()} == {"pass"}
    one, other = rows[f"onnxruntime/{_TWIN}"], rows[_LITERT]
    assert (one.twin_of, other.twin_of) == (other.id, one.id)
    assert rows["ai_edge_litert/float_wf32_af32"].twin_of == "onnxruntime/float_wf32_af32"
    assert rows["ai_edge_litert/dynamic_wi8_af32_pc"].twin_of is None
    assert (one.format, other.format) == ("onnx", "tflite")
    assert other.runtime == "ai-edge-litert"
    assert other.runtime_version != one.runtime_version
    # One calibration: what each answers differs by rounding at most.
    assert one.agreement is not None
    assert other.agreement is not None
    assert abs(one.agreement - other.agreement) <= 0.02


def test_a_twin_s_parity_is_proved_on_the_row_and_in_the_report(both: Conversion) -> None:
    rows = _rows(both)
    found = rows[_LITERT].parity
    assert found is not None
    assert found.worse == 0
    assert found.equal + found.one_step == found.operators > 4
    assert 0.0 <= found.outputs_equal <= 1.0
    assert {key for key, row in rows.items() if row.parity is not None} == {_LITERT}
    proof = both.report.parity[_LITERT]
    assert proof["is_twin"] is True
    assert proof["operators"] == found.operators
    page = (both.directory / "report.html").read_text()
    assert 'id="twin"' in page
    assert "What the twin costs" in page


def test_every_figure_of_a_tflite_row_is_measured(both: Conversion) -> None:
    rows = _rows(both)
    for key in (_LITERT, "ai_edge_litert/float_wf16_af16", "ai_edge_litert/dynamic_wi8_af32_pc"):
        row = rows[key]
        for field in _FIGURES:
            assert getattr(row, field) is not None, (key, field)
        assert any("TRANSPOSE" in text for text in row.decisions)
    assert rows["ai_edge_litert/dynamic_wi8_af32_pc"].int8_fraction == 1.0
    assert rows["ai_edge_litert/float_wf16_af16"].int8_fraction == 0.0
    assert rows[_LITERT].int8_fraction == pytest.approx(1.0, abs=0.01)


def test_the_bundle_carries_the_best_of_each_runtime_and_fp32(both: Conversion) -> None:
    manifest = both.manifest
    assert manifest is not None
    runtimes = [variant.runtime for variant in manifest.variants]
    assert sorted(runtimes[:2]) == ["ai-edge-litert", "onnxruntime"]
    assert manifest.variants[-1].id == "onnxruntime/float_wf32_af32"
    (carried,) = [one for one in manifest.variants if one.runtime == "ai-edge-litert"]
    assert carried.model_path == f"variants/{carried.id}/model.tflite"
    assert carried.session_config == {}
    assert carried.axes == {"image": (0, 2, 3, 1)}
    row = _rows(both)[carried.id]
    assert (carried.twin_of, carried.parity) == (row.twin_of, row.parity)
    content = (both.directory / carried.model_path).read_bytes()
    told = json.loads(metadata_of(content)[METADATA_NAME])
    assert told["labels"] == ["a", "b", "c", "d"]
    assert told["version"] == 1


def test_shards_hold_what_litert_really_answers(both: Conversion) -> None:
    manifest = both.manifest
    assert manifest is not None
    (carried,) = [one for one in manifest.variants if one.runtime == "ai-edge-litert"]
    with np.load(both.directory / manifest.validation[0].file.path, allow_pickle=False) as shard:
        arrays = dict(shard)
    content = (both.directory / carried.model_path).read_bytes()
    session = open_session(content, axes={"image": (0, 2, 3, 1)})
    samples = arrays[input_key("image")]
    found = np.concatenate(
        [session.run(["logits"], {"image": samples[i : i + 1]})[0] for i in range(len(samples))]
    )
    np.testing.assert_array_equal(found, arrays[host_key(carried.id, "logits")])


def test_a_tflite_file_is_cut_where_a_large_weight_begins(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("Gemm", ["f", "big"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "small"], ["logits"], transB=1),
    ]
    made = model(nodes, [weights(rng, "big", 2048, 64), weights(rng, "small", 4, 2048)], 17)
    workshop = Workshop(tmp_path, made, n=40)
    manifest = run(
        _options(workshop, candidates=("ai_edge_litert/float_wf32_af32",), format="tflite")
    ).manifest
    assert manifest is not None
    (variant,) = manifest.variants
    content = (workshop.output / variant.model_path).read_bytes()
    (file,) = variant.files
    edges = np.cumsum([0, *(chunk.size_bytes for chunk in file.chunks)]).tolist()
    large = max(tensor_spans(content), key=lambda span: span.size_bytes)
    assert large.size_bytes == 2048 * 64 * 4
    assert large.offset in edges


def test_with_tflite_alone_only_its_rows_compete_and_fp32_is_tflite(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    conversion = run(_options(workshop, candidates=(_TWIN,), format="tflite"))
    rows = _rows(conversion)
    assert list(rows) == [
        "onnxruntime/float_wf32_af32", f"onnxruntime/{_TWIN}", _LITERT, "ai_edge_litert/float_wf32_af32",
    ]  # fmt: skip
    manifest = conversion.manifest
    assert manifest is not None
    assert {one.runtime for one in manifest.variants} == {"ai-edge-litert"}
    assert manifest.variants[-1].id == "ai_edge_litert/float_wf32_af32"


@pytest.mark.parametrize("edge", ["int8", "uint8"])
def test_integer_edges_answer_as_the_float_ones(tmp_path: Path, edge: str) -> None:
    """The whole network in integers: a convolution and a relu, so that nothing stays float at the end."""
    workshop = Workshop(tmp_path, _all_integer())
    names = (f"ai_edge_litert/{_TWIN}",)
    found = _rows(run(_options(workshop, candidates=names, tflite_edge=edge)))[_LITERT]
    plain = _rows(run(_options(workshop, candidates=names, force=True)))[_LITERT]
    assert found.status == plain.status == "pass"
    assert found.agreement == plain.agreement
    assert found.fusion is not None
    assert plain.fusion is not None
    assert (found.fusion.qdq_left == 0) == (edge == "int8")
    assert plain.fusion.qdq_left == 2


def _all_integer() -> onnx.ModelProto:
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["logits"], transB=1),
    ]
    return model(nodes, [weights(rng, "w", 4, 1, 3, 3), weights(rng, "v", 4, 256)], 17)


def test_a_larger_batch_is_answered_for_one_sample_and_not_timed(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    rows = _rows(run(_options(workshop, candidates=(_LITERT, "static_wi8_au8_pc_minmax"), batch=4)))
    assert rows[_LITERT].status == "pass"
    assert rows[_LITERT].latency_ratio is None
    assert any("4 samples at once" in text for text in rows[_LITERT].decisions)
    assert rows["onnxruntime/static_wi8_au8_pc_minmax"].latency_ratio is not None


def test_what_cannot_be_written_is_a_row_with_code_and_node_and_nothing_else_is_lost(tmp_path: Path) -> None:
    made = conv_net()
    made.graph.node[-1].output[0] = "plain"
    made.graph.node.append(helper.make_node("Cosh", ["plain"], ["cosh"], name="the_odd_one"))
    made.graph.node.append(helper.make_node("Add", ["plain", "cosh"], ["logits"]))
    workshop = Workshop(tmp_path, made)
    conversion = run(_options(workshop, candidates=(_TWIN, "ai_edge_litert/float_wf32_af32")))
    rows = _rows(conversion)
    for key in (_LITERT, "ai_edge_litert/float_wf32_af32"):
        assert rows[key].status == "error"
        assert "the_odd_one" in rows[key].reason
        assert "tflite_operator" in rows[key].reason
        assert rows[key].twin_of is None
    assert rows[f"onnxruntime/{_TWIN}"].status == "pass"
    assert rows[f"onnxruntime/{_TWIN}"].twin_of is None
    manifest = conversion.manifest
    assert manifest is not None
    assert {one.runtime for one in manifest.variants} == {"onnxruntime"}
    assert not list(workshop.output.rglob("*.tflite"))


def test_no_standard_output_and_the_same_files_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workshop = Workshop(tmp_path)
    first = _rows(run(_options(workshop)))
    again = _rows(run(_options(workshop, output=tmp_path / "again")))
    assert [row.sha256 for row in first.values()] == [row.sha256 for row in again.values()]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("target", "form", "code"),
    [("jetson_gpu_trt", "tflite", "format_forbidden"), ("qnn_htp", "both", "format_forbidden")],
)
def test_a_format_that_a_target_does_not_take_is_refused(
    workshop: Workshop, target: str, form: str, code: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(_options(workshop, target=target, format=form, candidates=()))
    assert caught.value.code == code


def test_a_recipe_that_litert_has_not_is_refused(workshop: Workshop) -> None:
    with pytest.raises(RecipeNameError) as caught:
        run(_options(workshop, candidates=("ai_edge_litert/static_wi8_au8_pc_minmax",)))
    assert caught.value.code == "recipe_runtime"


def test_free_axes_of_the_graph_are_as_long_as_the_samples(tmp_path: Path) -> None:
    """A `.tflite` file has fixed shapes: what the ONNX model leaves open the data say, as does the row."""
    made = conv_net()
    for value in (*made.graph.input, *made.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if value.name == "image" and axis in {2, 3}:
                dim.dim_param = "side"
    rows = _rows(run(_options(Workshop(tmp_path, made))))
    assert {row.status for row in rows.values()} == {"pass"}
    assert "axis 2 of image is 8 in the file, as in the samples" in rows[_LITERT].decisions
    assert not any("axis 0" in text for text in rows[_LITERT].decisions)


@pytest.mark.parametrize("target", ["coral_edgetpu", "ethos_u65_u55", "vip_npu_imx8mp"])
def test_a_target_that_takes_tflite_alone_gets_integer_edges_and_only_its_rows(
    tmp_path: Path, target: str
) -> None:
    conversion = run(_options(Workshop(tmp_path), target=target, candidates=()))
    baseline, *rows = conversion.report.candidates
    assert baseline.id == "onnxruntime/float_wf32_af32"
    assert {row.runtime for row in rows} == {"ai-edge-litert"}
    twin = next(row for row in rows if row.recipe.endswith("_twin"))
    assert twin.status == "pass", twin.reason
    assert twin.fusion is not None
    assert twin.fusion.qdq_left == 0
    assert twin.latency_scope != "target"
    assert conversion.report.parity[twin.id]["is_twin"] is True
    manifest = conversion.manifest
    assert manifest is not None
    assert manifest.variants[0].id == twin.id
    assert {one.runtime for one in manifest.variants} == {"ai-edge-litert"}


@pytest.mark.parametrize(("whole", "noted"), [(False, ["axis 1 of x is 4"]), (True, ["axis 0 of x is 9"])])
def test_what_counts_samples_is_left_to_the_batch(*, whole: bool, noted: list[str]) -> None:
    """`[T,4]` of a whole sample is fixed along time; `[N,4]` keeps its first axis for the batch."""
    shape = ["T", 4] if whole else ["N", "width"]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", values[:1], values[1:])
    stored = np.zeros((3, 9, 4) if whole else (3, 4), np.float32)
    data = {"x": InputData(sample_axis=None)} if whole else {}
    samples = Samples(path="here", sha256="0" * 64, arrays={"x": stored}, data=data, n=3)
    found, notes = at_the_samples_shape(helper.make_model(graph), samples)
    assert [text.split(" in the file")[0] for text in notes] == noted
    dims = found.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == ([9, 4] if whole else ["N", 4])


def test_attempts_made_in_other_processes_give_the_same_rows(tmp_path: Path, both: Conversion) -> None:
    found = _rows(run(_options(Workshop(tmp_path), executor="processes:2")))
    here = _rows(both)
    assert list(found) == list(here)
    for key, row in found.items():
        assert (row.status, row.accuracy, row.agreement) == ("pass", here[key].accuracy, here[key].agreement)
        assert (row.twin_of, row.parity) == (here[key].twin_of, here[key].parity)
    assert found[f"onnxruntime/{_TWIN}"].sha256 == here[f"onnxruntime/{_TWIN}"].sha256
