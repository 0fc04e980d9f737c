"""What is read of a model file: taken in, or refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converter import model as model_module
from converter.errors import InputError
from converter.model import read_model
from converter.passes.intake import intake
from converter.runtime import open_session
from tests.converter.builders import conv_net
from tests.converter.zoo import Exhibit, Net, samples_of
from tests.converter.zoo_layers import attention_with_mask, embedding, residual
from tests.converter.zoo_odd import double, external_data, half, half_inside, model_function, strange_names


def _saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    return caught.value.code


def test_a_plain_model_is_read_as_it_is(tmp_path: Path) -> None:
    path = _saved(tmp_path, residual())
    source = read_model(path)
    assert source.proto == residual()
    assert source.decisions == ()
    assert source.quantized is None
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = _saved(tmp_path, residual())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert _refusal(path) == "model_not_onnx"


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x80\x04.", b"hello", bytes(4096)])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert _refusal(path) == "model_not_onnx"


def test_external_data_is_taken_in_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    plain = Exhibit(build=external_data, external=True).save(path)
    source = read_model(path)
    assert source.decisions == ("weights taken in from weights.bin",)
    assert [t.raw_data for t in source.proto.graph.initializer] == [
        t.raw_data for t in plain.graph.initializer
    ]
    weights = tmp_path / "weights.bin"
    changed = bytearray(weights.read_bytes())
    changed[0] ^= 1
    weights.write_bytes(changed)
    assert read_model(path).sha256 != source.sha256


def test_external_data_must_be_there_and_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = folder / "model.onnx"
    Exhibit(build=external_data, external=True).save(path)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    assert _refusal(path) == "model_external_data"
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../weig.bin"))
    (tmp_path / "weights.bin").rename(tmp_path / "weig.bin")
    assert _refusal(path) == "model_external_data"


def test_external_data_counts_for_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    Exhibit(build=external_data, external=True).save(path)
    size = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    monkeypatch.setattr(model_module, "MODEL_BYTES_MAX", size)
    read_model(path)
    monkeypatch.setattr(model_module, "MODEL_BYTES_MAX", size - 1)
    assert _refusal(path) == "model_too_large"


def test_integers_alone_may_go_in(tmp_path: Path) -> None:
    assert [spec.dtype for spec in read_model(_saved(tmp_path, embedding())).signature.inputs] == ["int64"]


def test_several_inputs_keep_their_order_and_types(tmp_path: Path) -> None:
    found = read_model(_saved(tmp_path, attention_with_mask())).signature
    assert [(spec.name, spec.dtype) for spec in found.inputs] == [("tokens", "float32"), ("mask", "int64")]


@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul"])
def test_integer_operators_are_refused(tmp_path: Path, operator: str) -> None:
    made = conv_net()
    inputs = {"DynamicQuantizeLinear": ["image"], "MatMulInteger": ["q", "q"]}.get(operator, ["q"] * 8)
    made.graph.node.insert(0, helper.make_node("Cast", ["image"], ["q"], to=TensorProto.UINT8))
    outputs = ["a", "b", "c"] if operator.startswith("Dynamic") else ["a"]
    made.graph.node.insert(1, helper.make_node(operator, inputs, outputs))
    assert _refusal(_saved(tmp_path, made)) == "model_already_quantized"


def test_functions_are_inlined_and_their_domain_goes() -> None:
    made = model_function()
    feeds = samples_of(made, 2)
    before = open_session(made.SerializeToString()).run(None, feeds)[0]
    taken, said = intake(made)
    assert not taken.functions
    assert [opset.domain for opset in taken.opset_import] == [""]
    assert said == ("1 functions of the model's own were inlined",)
    np.testing.assert_array_equal(open_session(taken.SerializeToString()).run(None, feeds)[0], before)


def test_doubled_names_are_told_apart() -> None:
    taken, said = intake(strange_names())
    assert len({node.name for node in taken.graph.node}) == len(taken.graph.node)
    assert "two had the same" in said[0]
    open_session(taken.SerializeToString())


@pytest.mark.parametrize(
    ("build", "kind"), [(double, "float64"), (half, "float16"), (half_inside, "float16")]
)
def test_other_floats_become_float32(build: object, kind: str) -> None:
    made = build() if callable(build) else onnx.ModelProto()
    wanted = np.float64 if kind == "float64" else np.float16
    feeds = samples_of(made, 4)
    native = feeds if build is half_inside else {k: v.astype(wanted) for k, v in feeds.items()}
    before = open_session(made.SerializeToString()).run(None, native)[0]
    taken, said = intake(made)
    assert kind in said[0]
    after = open_session(taken.SerializeToString()).run(None, feeds)[0]
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before.astype(np.float32), atol=0.02 if kind == "float16" else 1e-5)


def test_a_float64_that_float32_cannot_hold_is_refused() -> None:
    net = Net()
    x = net.input("features", "N", 4, kind=TensorProto.DOUBLE)
    net.answer(net.op("Mul", x, net.constant(np.full(4, 1e300), np.float64)))
    net.outputs[-1].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(InputError, match="scale the model down") as caught:
        intake(net.model())
    assert caught.value.code == "model_dtype"
