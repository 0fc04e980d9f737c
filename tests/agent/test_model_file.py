"""A model's file is looked at before a runtime opens it: the hostile is refused by name, the real opened."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from agent.errors import FinalError
from agent.worker.measuring import run_trial
from agent.worker.model_file import require
from tests.agent import models, tflite
from tests.agent.models import good_job, refused
from tests.fuzz import make_seeds
from tests.fuzz.corpus_files import kept
from wire import onnx_check, onnx_walk, tflite_walk
from wire.bundle import TensorSpec

EXAMPLES = Path(__file__).parents[2] / "examples" / "fashion"
X = TensorSpec(name="x", dtype="float32", shape=(None, 8))
Y = TensorSpec(name="y", dtype="float32", shape=(None, 3))
NAMES = {"model_malformed", "model_external_data", "output_mismatch"}


def look(
    path: Path,
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
    runtime: str = "onnxruntime",
    axes: dict[str, tuple[int, ...]] | None = None,
) -> str:
    """The error's code, or `opened`."""
    try:
        require(path, runtime, inputs, outputs, axes or {})
    except FinalError as error:
        return error.code
    return "opened"


def changed(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A linear model of which something is another."""
    path = models.linear(folder / "model.onnx")
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


# --- real files


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.onnx")), ids=lambda path: path.name)
def test_a_real_network_is_opened(path: Path) -> None:
    image = TensorSpec(name="image", dtype="float32", shape=(None, 1, 28, 28))
    assert look(path, (image,)) == "opened"


@pytest.mark.parametrize("name", ["linear", "loop", "images", "quantized", "nested", "typed"])
def test_what_onnx_writes_is_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(kept("models.onnx_walk")[name])
    assert look(path) == "opened"


@pytest.mark.parametrize("name", ["images", "int8", "float32"])
@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_what_the_converter_writes_is_opened(tmp_path: Path, name: str, runtime: str) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(kept("models.tflite_walk")[name])
    assert look(path, runtime=runtime) == "opened"


def test_a_runtime_that_is_not_known_is_left_to_say_so(tmp_path: Path) -> None:
    assert look(tmp_path / "none", runtime="tensorrt") == "opened"


def test_nothing_keeps_the_file_mapped(tmp_path: Path) -> None:
    good, bad = models.linear(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"\x3a\xff")
    assert (look(good), look(bad)) == ("opened", "model_malformed")
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(good) not in maps
    assert str(bad) not in maps


def test_looking_loads_neither_numpy_nor_a_runtime() -> None:
    import subprocess  # noqa: PLC0415 - for this test alone

    code = (
        "import sys, agent.worker.model_file as m; print({'numpy', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "set()"


# --- cut off, too deep, too large


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    data = kept(f"models.{kind}_walk")["images"]
    path, runtime = tmp_path / f"model.{kind}", "onnxruntime" if kind == "onnx" else "ai-edge-litert"
    ends = []
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        ends.append(look(path, runtime=runtime))
    # A file that is cut between two fields of the model's own is whole protobuf: it lacks its operator set.
    assert set(ends) == {"model_malformed"}


def test_no_file_is_named_as_such(tmp_path: Path) -> None:
    assert look(tmp_path / "none.onnx") == "model_load_failed"
    assert look(tmp_path) == "model_load_failed"


def test_graphs_in_graphs_in_graphs(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make_seeds.nested(tmp_path, 13))
    assert look(path) == "opened"
    path.write_bytes(make_seeds.nested(tmp_path, 16))
    assert look(path) == "model_malformed"


def test_depth_costs_no_stack(tmp_path: Path) -> None:
    """A hundred thousand graphs in graphs, by the bytes alone."""
    data = b""
    for _ in range(20_000):
        for field in (b"\x32", b"\x2a", b"\x0a"):  # an attribute's graph, a node's attribute, a graph's node
            data = field + _length(len(data)) + data
            data = data[:200_000]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08\x42\x02\x10\x11\x3a" + _length(len(data)) + data)
    assert look(path) == "model_malformed"


def _length(size: int) -> bytes:
    found = bytearray()
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])


@pytest.mark.parametrize("dims", [[2**40], [2**32, 2**32], [-1], [9, 3], [8, 3, 0], [1] * 500])
def test_a_tensor_that_asks_for_more_or_less_than_it_has(tmp_path: Path, dims: list[int]) -> None:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    assert look(changed(tmp_path, change)) == "model_malformed"


def test_a_typed_tensor_that_asks_for_more_than_it_has(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor("more", TensorProto.FLOAT, [2], [1.0, 2.0])
        tensor.dims[0] = 2**50
        model.graph.initializer.append(tensor)

    assert look(changed(tmp_path, change)) == "model_malformed"


@pytest.mark.parametrize("version", [0, -1, 100_000, 2**62])
def test_an_absurd_operator_set(tmp_path: Path, version: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    assert look(changed(tmp_path, change)) == "model_malformed"


def test_no_operator_set_and_an_absurd_version(tmp_path: Path) -> None:
    assert look(changed(tmp_path, lambda model: model.ClearField("opset_import"))) == "model_malformed"
    assert look(changed(tmp_path, lambda model: setattr(model, "ir_version", 10**9))) == "model_malformed"


def test_millions_of_fields_are_not_counted_to_their_end(tmp_path: Path) -> None:
    path = models.linear(tmp_path / "model.onnx")
    with path.open("ab") as file:
        file.write(b"\x08\x08" * (onnx_check.FIELDS_MAX - 1000))
    assert look(path) == "opened"
    with path.open("ab") as file:
        file.write(b"\x08\x08" * 1000)
    assert look(path) == "model_malformed"


def test_tflite_vectors_that_overlap(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(kept("models.tflite_walk")["overlapping"])
    assert look(path, runtime="ai-edge-litert") == "model_malformed"


def test_a_tflite_constant_that_is_too_small(tmp_path: Path) -> None:
    data = bytearray(kept("models.tflite_walk")["float32"])
    constant = next(one for one in tflite_walk.constants(bytes(data)) if one.shape == (3, 8))
    shape = bytes([2, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0])
    for at in range(len(data) - len(shape)):
        if data[at : at + len(shape)] == shape:
            data[at + 8] = 9
    assert constant.span.size_bytes == 3 * 8
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    assert look(path, runtime="ai-edge-litert") == "model_malformed"


# --- weights in other files


@pytest.mark.parametrize(
    "place",
    [
        "../../etc/shadow",
        "/etc/shadow",
        "..",
        "a/../../b",
        ".hidden",
        "weights.bin\0",
        "a" * 300,
        "",
        "a//b",
        "C:\\x",
    ],
)
def test_weights_elsewhere_are_never_opened(tmp_path: Path, place: str) -> None:
    path = _external(tmp_path, location=place)
    assert look(path) == "model_external_data"
    with pytest.raises(onnx_walk.WalkError) as raised:
        onnx_check.examined(path.read_bytes())
    assert raised.value.code == "external_path"


def test_weights_elsewhere_that_are_not_said_to_be_are_not_opened_either(tmp_path: Path) -> None:
    path = _external(tmp_path, location="../../etc/shadow")
    model = onnx.load_model_from_string(path.read_bytes())
    model.graph.initializer[0].ClearField("data_location")
    path.write_bytes(model.SerializeToString())
    assert look(path) == "model_external_data"


def _external(folder: Path, **entries: str) -> Path:
    model = onnx.load_model_from_string(make_seeds.external())
    tensor = model.graph.initializer[0]
    told = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in told.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model_are_opened_as_long_as_they_are(tmp_path: Path) -> None:
    assert look(_external(tmp_path)) == "model_external_data"
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert look(_external(tmp_path)) == "opened"
    assert look(_external(tmp_path, offset="1")) == "model_external_data"
    assert look(_external(tmp_path, length="15")) == "model_malformed"
    assert look(_external(tmp_path, offset="-1")) == "model_malformed"
    assert look(_external(tmp_path, offset="9" * 40)) == "model_malformed"
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")
    assert look(_external(tmp_path)) == "model_external_data"


@pytest.mark.parametrize("where", ["attribute", "subgraph", "function", "sparse", "training"])
def test_weights_elsewhere_are_found_wherever_a_tensor_may_stand(tmp_path: Path, where: str) -> None:
    hostile = onnx.load_model_from_string(make_seeds.external()).graph.initializer[0]
    hostile.external_data[0].value = "../../etc/shadow"
    constant = helper.make_node("Constant", [], ["c"], value=hostile)

    def change(model: onnx.ModelProto) -> None:
        if where == "attribute":
            model.graph.node.append(constant)
        elif where == "subgraph":
            inner = helper.make_graph([constant], "g", [], [])
            model.graph.node.append(
                helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
            )
        elif where == "function":
            opset = [helper.make_opsetid("", 17)]
            model.functions.append(helper.make_function("d", "f", [], ["c"], [constant], opset))
        elif where == "sparse":
            model.graph.sparse_initializer.add().values.CopyFrom(hostile)
        else:
            model.training_info.add().initialization.initializer.append(hostile)

    assert look(changed(tmp_path, change)) == "model_external_data"


# --- what was promised


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (X, "opened"),
        (replace(X, name="other"), "output_mismatch"),
        (replace(X, dtype="int8"), "output_mismatch"),
        (replace(X, shape=(None, 9)), "output_mismatch"),
        (replace(X, shape=(None, 8, 1)), "output_mismatch"),
        (replace(X, shape=(None, None)), "opened"),
        (replace(X, shape=(7, 8)), "opened"),
    ],
)
def test_inputs_that_contradict_the_release(tmp_path: Path, spec: TensorSpec, code: str) -> None:
    assert look(models.linear(tmp_path / "model.onnx"), (spec,)) == code


def test_an_input_that_the_release_does_not_know(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input.append(models.value("more", ["N", 8]))

    assert look(changed(tmp_path, change), (X,)) == "output_mismatch"


def test_a_file_of_another_batch_is_the_runtimes_matter(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(models.value("x", [3, 8]))

    assert look(changed(tmp_path, change), (replace(X, shape=(1, 8)),)) == "opened"


def test_outputs_that_contradict_the_release(tmp_path: Path) -> None:
    path = models.linear(tmp_path / "model.onnx")
    assert look(path, (X,), (Y,)) == "opened"
    assert look(path, (X,), (replace(Y, name="z"),)) == "output_mismatch"


def test_a_file_in_other_axes(tmp_path: Path) -> None:
    twins = tflite.images(tmp_path)
    spec = TensorSpec(name="x", dtype="float32", shape=(None, *tflite.IMAGE))
    assert look(twins.tflite, (spec,), (Y,), "ai-edge-litert", twins.axes) == "opened"
    assert look(twins.tflite, (spec,), (Y,), "ai-edge-litert") == "output_mismatch"


def test_a_trial_refuses_before_the_runtime_sees_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = good_job(tmp_path)
    data = bytearray(models.model_of(job).read_bytes())
    models.model_of(job).write_bytes(data[:-5])
    monkeypatch.setattr("agent.worker.runtimes.find", lambda _name: pytest.fail("the runtime was asked"))
    assert "not opened" in refused(job, "model_malformed")


def test_an_incumbent_that_names_its_output_otherwise_is_still_compared(tmp_path: Path) -> None:
    """It need not keep what the candidate's release promises."""
    node = helper.make_node("MatMul", ["x", "w"], ["z"])
    other = models.save(
        tmp_path / "other" / "model.onnx",
        [node],
        {"w": models.weight()},
        outputs=[models.value("z", ["N", 3])],
    )
    found = run_trial(good_job(tmp_path, incumbent=models.run_of(other, models.OTHER_DIGEST)))
    assert (found.incumbent, found.notes) == (models.OTHER_DIGEST, ())
    other.write_bytes(other.read_bytes()[:-3])
    found = run_trial(good_job(tmp_path, incumbent=models.run_of(other, models.OTHER_DIGEST)))
    assert found.incumbent is None
    assert "model_malformed" in found.notes[0]


# --- mutated real files


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_models_are_refused_by_name_or_as_protobuf_reads_them(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Where protobuf itself reads the bytes, both say the same of what lies elsewhere."""
    content = bytearray(kept("models.onnx_walk")[data.draw(st.sampled_from(["external", "typed", "nested"]))])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.onnx"
    path.write_bytes(content)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    end = look(path)
    assert end in NAMES | {"opened"}
    if end == "opened":
        try:
            model = onnx.load_model_from_string(bytes(content))
        except Exception:  # noqa: BLE001 - protobuf checks text and groups as well, and the runtime says so
            return
        places = [e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"]
        assert set(places) <= {"weights.bin"}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_tflite_files_are_refused_by_name(data: st.DataObject) -> None:
    content = bytearray(kept("models.tflite_walk")[data.draw(st.sampled_from(["images", "int8"]))])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(tflite_walk.WalkError):
        tflite_walk.require_payloads(bytes(content))
        tflite_walk.edges(bytes(content))


def test_a_weight_of_each_type_has_its_size(tmp_path: Path) -> None:
    for kind, bits in onnx_check._BITS.items():
        tensor = TensorProto(name="t", data_type=kind, dims=[8], raw_data=bytes(bits))
        path = changed(tmp_path, lambda model, t=tensor: model.graph.initializer.append(t))  # type: ignore[misc]
        assert look(path) == "opened", kind
        tensor.raw_data += b"x"
        path = changed(tmp_path, lambda model, t=tensor: model.graph.initializer.append(t))  # type: ignore[misc]
        assert look(path) == "model_malformed", kind


def test_half_a_byte_more_takes_a_byte(tmp_path: Path) -> None:
    for size, end in ((2, "opened"), (1, "model_malformed")):
        tensor = TensorProto(name="t", data_type=TensorProto.INT4, dims=[3], raw_data=bytes(size))
        path = changed(tmp_path, lambda model, t=tensor: model.graph.initializer.append(t))  # type: ignore[misc]
        assert look(path) == end


def test_weights_that_older_files_list_among_the_inputs_are_not_asked_for(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input.append(models.value("w", [8, 3]))

    assert look(changed(tmp_path, change), (X,)) == "opened"


def test_scalars_and_empty_weights(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for array in (np.float32(3), np.zeros((0, 4), np.float32), np.array(["word"], object)):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), f"n{array!r}"))

    assert look(changed(tmp_path, change)) == "opened"
