"""A model's file is looked at before onnx, ONNX Runtime or LiteRT open it, the person's own too."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter import opening
from converter.errors import InputError
from converter.limits import MODEL_BYTES_MAX
from converter.model import read_model
from converter.opening import require_expandable
from tests.converter.builders import conv_net

_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]


def function(name: str, *calls: str, domain: str = "own") -> onnx.FunctionProto:
    """One after the other, a function of our own or an operator of ONNX."""
    nodes = []
    for i, called in enumerate(calls):
        given, made = "a" if i == 0 else f"t{i}", "b" if i == len(calls) - 1 else f"t{i + 1}"
        where = domain if called.startswith("f") else ""
        nodes.append(helper.make_node(called, [given], [made], domain=where))
    return helper.make_function(domain, name, ["a"], ["b"], nodes, _OPSETS)


def with_functions(
    *functions: onnx.FunctionProto, nodes: list[onnx.NodeProto] | None = None
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    called = nodes or [helper.make_node("f0", ["x"], ["y"], domain="own")]
    graph = helper.make_graph(called, "g", [x], [y])
    return helper.make_model(graph, opset_imports=_OPSETS, functions=list(functions), ir_version=8)


def doubling(count: int) -> onnx.ModelProto:
    """Each function calls the next one twice."""
    calls = [function(f"f{i}", f"f{i + 1}", f"f{i + 1}") for i in range(count)]
    return with_functions(*calls, function(f"f{count}", "Relu"))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_model(path)
    return caught.value


def test_functions_that_stand_for_millions_of_nodes_are_refused_unopened(tmp_path: Path) -> None:
    """It took the checker's, the inliner's and the runtime's time without end, and all memory, from 3 KB."""
    before_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for count in (20, 60, 3000):
        found = refusal(saved(tmp_path, doubling(count)))
        assert found.code == "model_too_large"
        assert "functions" in str(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before_s < 20


def test_as_many_nodes_as_are_read_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "NODES_MAX", 32)
    require_expandable(doubling(5))
    monkeypatch.setattr(opening, "NODES_MAX", 31)
    with pytest.raises(InputError, match="more than 31 nodes"):
        require_expandable(doubling(5))


@pytest.mark.parametrize("kind", [onnx.AttributeProto.GRAPH, onnx.AttributeProto.UNDEFINED])
def test_calls_from_graphs_within_nodes_count_too(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = helper.make_graph(
        [helper.make_node("f0", ["x"], ["z"], domain="own")] * 3,
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])],
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    for one in branch.attribute:
        one.type = kind
    proto = with_functions(function("f0", "Relu", "Relu"), nodes=[branch])
    monkeypatch.setattr(opening, "NODES_MAX", 13)
    require_expandable(proto)
    monkeypatch.setattr(opening, "NODES_MAX", 12)
    with pytest.raises(InputError, match="functions"):
        require_expandable(proto)


def test_a_function_that_calls_itself_is_named(tmp_path: Path) -> None:
    for functions in ([function("f0", "f0")], [function("f0", "f1"), function("f1", "f0")]):
        found = refusal(saved(tmp_path, with_functions(*functions)))
        assert found.code == "model_not_onnx"
        assert "calls itself" in str(found)


def test_a_file_of_functions_within_bounds_is_read(tmp_path: Path) -> None:
    source = read_model(saved(tmp_path, doubling(4)))
    assert [node.op_type for node in source.proto.graph.node] == ["Relu"] * 16


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data + b"\x3a\xff\xff\xff\xff\x0f", "reaches beyond"),
        (lambda data: b"\x08\xe8\x07" + data[2:], "IR version"),
        (lambda _: b"\x08\x08" * 50, "no graph"),
    ],
)
def test_what_can_be_no_model_is_refused_before_the_onnx_package_sees_it(
    tmp_path: Path, spoil: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(spoil)
    (tmp_path / "model.onnx").write_bytes(spoil(conv_net().SerializeToString()))
    monkeypatch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("it was opened"))
    found = refusal(tmp_path / "model.onnx")
    assert found.code == "model_not_onnx"
    assert words in str(found)
    assert str(found).count("[") == 1, "one code"


@pytest.mark.parametrize("name", [b"w1", b"Relu", b"logits", b"GlobalAveragePool"])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, name: bytes) -> None:
    """It came as bytes, and the passes ended in a TypeError."""
    path = tmp_path / "model.onnx"
    content = conv_net().SerializeToString()
    assert name in content
    path.write_bytes(content.replace(name, b"\xff" * len(name)))
    found = refusal(path)
    assert found.code == "model_not_onnx"
    assert "UTF-8" in str(found)


def with_constant(tensor: TensorProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "values", "reads"),
    [
        (TensorProto.FLOAT, 3, True),
        (TensorProto.FLOAT, 4, False),
        (TensorProto.DOUBLE, 3, False),
        (110, 3, False),
        (TensorProto.FLOAT, 12, True),
        (110, 12, False),
    ],
)
def test_a_tensor_holds_what_its_shape_and_type_ask_for(
    tmp_path: Path, kind: int, values: int, reads: bool
) -> None:
    """The onnx package's checker counts no values; the passes ended in a ValueError or a KeyError."""
    tensor = TensorProto(name="c", data_type=kind, dims=[3], float_data=[1.0] * values)
    if values == 12:
        tensor = TensorProto(name="c", data_type=kind, dims=[3], raw_data=bytes(values))
    for proto in (with_constant(tensor), conv_net()):
        if proto.graph.name != "g":
            proto.graph.initializer.append(tensor)
        path = saved(tmp_path, proto)
        if reads:
            read_model(path)
        else:
            assert refusal(path).code == "model_not_onnx"


@pytest.mark.parametrize(
    ("zeros", "scales", "fields", "reads"),
    [
        ([], [], {}, True),
        ([3], [2], {"axis": 0}, False),
        ([0], [3], {"axis": 0}, False),
        ([3], [3], {"axis": 5}, False),
        ([1, 4], [1, 4], {"axis": 0, "block_size": 2**40}, True),
        ([1, 4], [1, 4], {"axis": 0, "block_size": -1}, False),
    ],
)
def test_scales_that_do_not_fit_what_they_belong_to_are_named(
    tmp_path: Path, zeros: list[int], scales: list[int], fields: dict[str, int], reads: bool
) -> None:
    """They ended in a ValueError; a block of 2**40 asked for terabytes."""
    constants = [
        numpy_helper.from_array(np.ones((3, 4), np.int8), "w"),
        numpy_helper.from_array(np.full(scales, 0.5, np.float32), "s"),
        numpy_helper.from_array(np.zeros(zeros, np.int8), "z"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", 3), ("y", 4))
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], **fields),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    path = saved(
        tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    if reads:
        assert read_model(path).quantized is not None
    else:
        assert refusal(path).code == "model_not_onnx"


# --- weights in other files ---------------------------------------------------------------------------


def naming(count: int, *, length: bool, location: str = "weights.bin") -> onnx.ModelProto:
    """So many small tensors, each said to lie at the beginning of one file."""
    proto = conv_net()
    for i in range(count):
        tensor = TensorProto(name=f"far{i}", data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        told = {"location": location, "offset": "0", **({"length": "16"} if length else {})}
        for key, value in told.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        proto.graph.initializer.append(tensor)
    return proto


def test_one_large_file_named_by_many_tensors_is_refused_unread(tmp_path: Path) -> None:
    """Without a length each of them is read to the file's end: a hundred copies of a file without content."""
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(MODEL_BYTES_MAX // 50)
    found = refusal(saved(tmp_path, naming(100, length=False)))
    assert found.code == "model_too_large"
    assert len(read_model(saved(tmp_path, naming(100, length=True))).external) == 1
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(MODEL_BYTES_MAX)
    assert refusal(saved(tmp_path, naming(1, length=True))).code == "model_too_large"


@pytest.mark.parametrize("name", ["my model.onnx.data", "poids-éàü.bin", "inner/weights.bin"])
def test_weights_may_be_called_as_people_call_their_models(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert read_model(saved(tmp_path, naming(1, length=True, location=name))).external == (name,)


@pytest.mark.parametrize(
    "name", ["../weights.bin", "/etc/shadow", "a/../../b", "a\nb", "..", "x" * 300, "a\ufffd"]
)
def test_weights_that_lie_elsewhere_are_named_and_not_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("it was opened"))
    assert refusal(saved(tmp_path, naming(1, length=True, location=name))).code == "model_external_data"
