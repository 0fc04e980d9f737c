"""`inspect`: a whole bundle is described, a damaged one is refused with its files named."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from converter.cli.inspection import show_inspection
from converter.graph_summary import summarize
from converter.inspect import Bundle, inspect, session_config
from converter.look import Model
from converter.pipeline import run
from converter.targets.detect import Machine
from tests.converter.builders import Workshop, conv_net
from tests.converter.commands import invoke, main_code
from wire.bundle import MANIFEST_BYTES_MAX, Manifest
from wire.codec import decode
from wire.errors import ShallopError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, made once; tests that spoil it take a copy."""
    shop = Workshop(tmp_path_factory.mktemp("inspect"))
    run(shop.options("rpi4"))
    return shop.output


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_a_bundle_is_told_whole(made: Path) -> None:
    found = inspect(made)
    assert isinstance(found, Bundle)
    content = (made / "manifest.json").read_bytes()
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert {file.path for file in found.files} | {"manifest.json", "candidates.json", "report.html"} == {
        path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()
    }
    assert found.unlisted == ("candidates.json", "report.html")
    assert [one.variant.id for one in found.variants] == [v["id"] for v in json.loads(content)["variants"]]
    first, last = found.variants[0].model, found.variants[-1].model
    assert found.variants[0].variant.recipe == "static_wi8_ai8_pc_minmax"
    assert isinstance(first, Model)
    assert isinstance(last, Model)
    assert (first.graph.quantized, last.graph.quantized) == (True, False)
    assert first.fusion is not None
    assert first.fusion.integer > 0
    assert last.fusion is not None
    assert last.fusion.integer == 0


def test_the_fusion_told_is_the_one_that_the_conversion_found(made: Path) -> None:
    found = inspect(made)
    assert isinstance(found, Bundle)
    rows = {row["id"]: row for row in json.loads((made / "candidates.json").read_bytes())["candidates"]}
    for one in found.variants:
        assert one.model is not None
        assert one.model.fusion is not None
        assert rows[one.variant.id]["fusion"] == {
            "integer": one.model.fusion.integer, "float": one.model.fusion.float,
            "qdq_left": one.model.fusion.qdq_left,
        }  # fmt: skip


def test_a_variant_for_another_class_is_run_as_its_target_would(made: Path) -> None:
    manifest = decode((made / "manifest.json").read_bytes(), Manifest, MANIFEST_BYTES_MAX)
    quantized, plain = manifest.variants[0], manifest.variants[-1]
    board = Machine(arch="aarch64", features=frozenset({"asimd"}), cpu="Cortex-A72")
    host = Machine(arch="x86_64", features=frozenset({"avx2", "avx512_vnni"}), cpu="EPYC")
    emulated = {"session.qdqisint8allowed": "1"}
    assert session_config(manifest, quantized, host) == quantized.session_config | emulated
    assert session_config(manifest, quantized, board) == quantized.session_config
    assert session_config(manifest, plain, host) == plain.session_config
    unknown = structs.replace(manifest, target="toaster")
    assert session_config(unknown, quantized, host) == quantized.session_config


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _out_of_the_bundle(path: Path) -> None:
    outside = path.parents[2] / "elsewhere.npz"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (_flip, "SHA-256 differs"),
    "gone": (Path.unlink, "cannot be read"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "the manifest says"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has more than"),
    "elsewhere": (_out_of_the_bundle, "leads out of the bundle"),
}


@pytest.mark.parametrize("case", _DAMAGE)
def test_a_damaged_bundle_ends_with_2_and_names_the_file(
    bundle: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = _DAMAGE[case]
    spoil(bundle / "validation" / "shard-0000.npz")
    assert main_code(["inspect", str(bundle)], monkeypatch) == 2
    shown = capsys.readouterr()
    assert "validation/shard-0000.npz" in shown.err
    assert words in shown.err
    assert "[bundle_damaged]" in shown.err
    assert shown.out == ""


def test_every_damaged_file_is_named_not_only_the_first(bundle: Path) -> None:
    paths = [path for path in bundle.rglob("*") if path.suffix in {".npz", ".onnx"}]
    for path in paths:
        _flip(path)
    with pytest.raises(ShallopError) as caught:
        inspect(bundle)
    for path in paths:
        assert path.relative_to(bundle).as_posix() in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("manifest.json", b"{", "malformed"),
        ("manifest.json", b'{"kind":"release","version":9}', "unsupported_version"),
        ("manifest.json", None, "no_bundle"),
        ("model.onnx", b"hello", "model_not_onnx"),
        ("model.onnx", b"", "model_not_onnx"),
    ],
)
def test_what_is_no_bundle_and_no_model_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, code: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ShallopError) as caught:
        inspect(tmp_path / name if name.endswith(".onnx") else tmp_path)
    assert caught.value.code == code


def test_nothing_there_and_nothing_passed_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ShallopError, match="does not exist"):
        inspect(tmp_path / "missing")
    (tmp_path / "candidates.json").write_text("{}")
    with pytest.raises(ShallopError, match=r"no candidate passed.*shallop-convert candidates"):
        inspect(tmp_path)


def test_the_command_shows_it_within_eighty_columns(made: Path) -> None:
    found, paper = inspect(made), io.StringIO()
    show_inspection(found, Console(width=80, file=paper, highlight=False))
    assert max(len(line) for line in paper.getvalue().splitlines()) <= 80
    assert "…/" not in paper.getvalue()
    shown = invoke("inspect", str(made))
    assert shown.exit_code == 0
    for expected in ("(chosen)", "accuracy min_fraction_of_baseline 0.9", "every one whole", "3 int8"):
        assert expected in shown.stdout, expected
    asked = json.loads(invoke("inspect", str(made), "--json").stdout)
    assert asked["manifest"]["target"] == "arm64_v8_0"
    assert asked["variants"][0]["model"]["graph"]["operators"]


def test_an_onnx_file_alone_is_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net().SerializeToString())
    found = inspect(path)
    assert isinstance(found, Model)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.graph.opset, found.graph.nodes, found.graph.quantized) == (17, 7, False)
    shown = invoke("inspect", str(path)).stdout
    assert "not quantized" in shown
    assert found.sha256 in shown


def test_a_graph_that_does_not_run_here_is_described_all_the_same(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Teleport", ["x"], ["y"], domain="elsewhere")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    path = tmp_path / "odd.onnx"
    onnx.save(
        helper.make_model(
            helper.make_graph([node], "g", [x], [y]),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)],
            ir_version=8,
        ),
        path,
    )
    found = inspect(path)
    assert isinstance(found, Model)
    assert found.fusion is None
    assert "Teleport" in found.fusion_note
    assert "this host's runtime cannot run it" in invoke("inspect", str(path)).stdout


def _graph(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(nodes, "g", [], [], constants), opset_imports=[helper.make_opsetid("", 21)]
    )


def _constant(name: str, *values: float, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def test_operators_types_and_scales_are_counted() -> None:
    constants = [
        _constant("w8", 1, 2, kind=np.int8), _constant("s2", 0.1, 0.2), _constant("z2", 0, 0, kind=np.int8),
        _constant("v8", 1, kind=np.uint8), _constant("s1", 0.1), _constant("z1", 3, kind=np.uint8),
        _constant("b32", 5, kind=np.int32), _constant("z16", 3, kind=np.uint16),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s1", "z1"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s1", "z1"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "s2", "z2"], ["wd"]),
        helper.make_node("DequantizeLinear", ["b32", "s2"], ["bd"]),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"]),
        helper.make_node("DequantizeLinear", ["v8", "s1", "z1"], ["vd"]),
        helper.make_node("Gemm", ["c", "vd"], ["g"]),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s1", "z16"], ["rq"]),
        helper.make_node("QuantizeLinear", ["r", "s1"], ["rq2"]),
        helper.make_node("MatMulNBits", ["r", "w8"], ["m"], domain="com.microsoft", bits=4),
        helper.make_node("QLinearConv", ["x", "s1", "z1", "w8", "s2", "z2", "s1", "z1"], ["q"]),
        helper.make_node("MatMulInteger", ["x", "w8"], ["i"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["dq", "ds", "dz"]),
    ]
    found = summarize(_graph(nodes, constants))
    ways = {one.operator: (one.integer, one.weight_only, one.float) for one in found.operators}
    assert ways == {
        "Conv": (1, 0, 0), "Gemm": (0, 1, 0), "Relu": (0, 0, 1), "MatMulNBits": (0, 1, 0),
        "QLinearConv": (1, 0, 0), "MatMulInteger": (1, 0, 0),
    }  # fmt: skip
    assert found.weight_types == {"int8": 3, "uint8": 1, "int4": 1}
    assert (found.per_channel, found.per_tensor, found.scale_unknown) == (3, 1, 1)
    assert found.activation_types == {"uint8": 3, "uint16": 1}
    assert found.opset == 21


def test_a_weight_in_a_constant_node_counts_too() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=_constant("w", 1, 2, kind=np.int8)),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    found = summarize(_graph(nodes, [_constant("s", 0.5)]))
    assert found.weight_types == {"int8": 1}
    assert [(one.operator, one.weight_only) for one in found.operators] == [("MatMul", 1)]
