"""The verifier of TFLite files: what it lets through, every rule, and bytes that are broken at random."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from converter.tflite import Options, write
from converter.tflite.errors import TFLiteError
from converter.tflite.schema import FILE_IDENTIFIER, schema
from converter.tflite.serialize import _Bytes
from converter.tflite.verify import verify
from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import quantized

ROOT = Path(__file__).parents[3]


def _content(**options: Any) -> bytes:  # noqa: ANN401 - of `Options`
    made = graph(
        [("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}), ("Relu", "c", "r"), ("GlobalAveragePool", "r", "g"),
         ("Flatten", "g", "f"), ("Gemm", "f w2 b2", "y")],
        {"w": floats(1, 4, 3, 3, 3), "b": floats(2, 4), "w2": floats(3, 4, 5), "b2": floats(4, 5)},
        outputs={"y": ["N", 5]},
    )  # fmt: skip
    return write(quantized(made), Options(metadata={"note": b"hello"}, **options)).content


def _changed(change: Callable[[Any], None]) -> bytes:
    """The file with its objects changed."""
    model = schema.ModelT.InitFromPackedBuf(_content(), 0)
    change(model)
    model.buffers = [
        _Bytes(b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes())
        for buffer in model.buffers
    ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


@pytest.mark.parametrize("options", [{}, {"edge": "int8"}, {"edge": "uint8"}, {"batch": 3}])
def test_what_the_writer_writes_is_sound(options: dict[str, Any]) -> None:
    verify(_content(**options))


def test_repacking_alone_breaks_nothing() -> None:
    verify(_changed(lambda _: None))


def _graph(model: Any) -> Any:  # noqa: ANN401 - the schema has no types
    return model.subgraphs[0]


def _conv(model: Any) -> Any:  # noqa: ANN401 - the schema has no types
    return _graph(model).operators[1]


def _tensor(model: Any, place: int) -> Any:  # noqa: ANN401 - the schema has no types
    return _graph(model).tensors[_conv(model).inputs[place]]


def _set(owner: Callable[[Any], Any], field: str, value: Any) -> Callable[[Any], None]:  # noqa: ANN401
    return lambda model: setattr(owner(model), field, value)


def _item(owner: Callable[[Any], Any], field: str, place: int, value: Any) -> Callable[[Any], None]:  # noqa: ANN401
    def change(model: Any) -> None:  # noqa: ANN401
        values = list(getattr(owner(model), field))
        values[place] = value
        setattr(owner(model), field, values)

    return change


def _few_scales(model: Any) -> None:  # noqa: ANN401 - the schema has no types
    quantization = _tensor(model, 1).quantization
    quantization.scale, quantization.zeroPoint = quantization.scale[:3], quantization.zeroPoint[:3]


_WEIGHT = lambda model: _tensor(model, 1)  # noqa: E731 - a place in the file
_SCALES = lambda model: _tensor(model, 1).quantization  # noqa: E731
_BIAS = lambda model: _tensor(model, 2).quantization  # noqa: E731
_RULES: dict[str, tuple[Callable[[Any], None], str]] = {
    "schema version": (_set(lambda m: m, "version", 2), "schema has version 2"),
    "no graph": (_set(lambda m: m, "subgraphs", []), "holds no graph"),
    "buffer 0": (_item(lambda m: m, "buffers", 0, schema.BufferT(data=[1])), "buffer 0 is not empty"),
    "operator": (_set(lambda m: m.operatorCodes[0], "builtinCode", 9999), "operator code 0 is 9999"),
    "old code": (_set(lambda m: m.operatorCodes[0], "deprecatedBuiltinCode", 1), "to old ones"),
    "operator version": (_set(lambda m: m.operatorCodes[0], "version", 0), "has version 0"),
    "code": (_set(_conv, "opcodeIndex", 99), "the code of operator 1 is 99"),
    "type": (_set(_WEIGHT, "type", schema.TensorType.STRING), "which is not written here"),
    "shape": (_item(_WEIGHT, "shape", 0, -1), "has shape"),
    "size": (_item(_WEIGHT, "shape", 0, 5), "has a buffer of 108 bytes"),
    "size too small": (_item(_WEIGHT, "shape", 0, 3), "has a buffer of 108 bytes"),
    "buffer": (_set(_WEIGHT, "buffer", 999), "the buffer of tensor"),
    "name": (_set(_WEIGHT, "name", "x"), "share the name b'x'"),
    "scales": (_set(_SCALES, "zeroPoint", [0, 0]), "4 scales and 2 zero points"),
    "scale count": (_set(_SCALES, "quantizedDimension", 1), "4 scales along axis 1"),
    "too few scales": (_few_scales, "3 scales along axis 0"),
    "scale axis": (_set(_SCALES, "quantizedDimension", 7), "the scales' axis"),
    "scale zero": (_item(_SCALES, "scale", 1, 0.0), "not a positive number"),
    "scale nan": (_item(_SCALES, "scale", 1, float("nan")), "not a positive number"),
    "zero point": (_item(_SCALES, "zeroPoint", 1, 128), "outside of -128 to 127"),
    "bias zero point": (_item(_BIAS, "zeroPoint", 1, 1), "outside of 0 to 0"),
    "float scales": (_set(lambda m: _graph(m).tensors[_graph(m).inputs[0]], "quantization",
                          schema.QuantizationParametersT(scale=[1.0], zeroPoint=[0])), "type float32"),
    "reads the future": (_set(_graph, "operators", None), "made by nobody"),
    "an input's place": (_item(_conv, "inputs", 0, 999), "an input of operator 1 is 999"),
    "a negative place": (_item(_conv, "inputs", 0, -2), "an input of operator 1 is -2"),
    "made twice": (lambda m: _graph(m).operators.append(_conv(m)), "which is there already"),
    "output": (_item(_graph, "outputs", 0, 99), "a tensor's place is 99"),
    "input twice": (lambda m: _set(_graph, "inputs", [*_graph(m).inputs] * 2)(m), "given twice"),
    "metadata": (_set(lambda m: m.metadata[0], "buffer", 99), "a metadata entry's buffer"),
    "signature": (_item(lambda m: m.signatureDefs[0], "inputs", 0,
                        schema.TensorMapT(name="x", tensorIndex=2)), "are not the graph's"),
    "signature's name": (_set(lambda m: m.signatureDefs[0].inputs[0], "name", None), "share a name"),
}  # fmt: skip


@pytest.mark.parametrize("rule", _RULES)
def test_every_rule(rule: str) -> None:
    change, words = _RULES[rule]
    with pytest.raises(TFLiteError, match=words) as caught:
        verify(_changed(change))
    assert caught.value.code == "tflite_file"


def test_operators_run_in_order() -> None:
    def change(model: Any) -> None:  # noqa: ANN401
        _graph(model).operators = list(reversed(_graph(model).operators))

    with pytest.raises(TFLiteError, match="before it is made"):
        verify(_changed(change))


def test_a_buffer_that_is_not_aligned() -> None:
    content = _content()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        buffer.data = None if buffer.data is None else bytes(np.asarray(buffer.data, np.uint8))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    with pytest.raises(TFLiteError, match="no multiple of 16"):
        verify(bytes(builder.Output()))


def test_a_buffer_that_is_longer_than_the_file() -> None:
    """Of an entry of metadata, whose length no tensor's shape tells."""
    content = bytearray(_content())
    start = content.index(b"hello")
    content[start - 4 : start] = len(content).to_bytes(4, "little")
    with pytest.raises(TFLiteError, match="reaches beyond the end"):
        verify(bytes(content))


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64, b"\x10\0\0\0TFL3", b"PK\3\4" * 40])
def test_no_file_at_all(content: bytes) -> None:
    with pytest.raises(TFLiteError):
        verify(content)


_LOAD = """
import json, os, sys
import numpy as np
from converter.errors import RecipeError
from converter.tflite.verify import verify
from ai_edge_litert.interpreter import Interpreter

content = open(sys.argv[1], "rb").read()
random = np.random.default_rng(20261121)
found = []
for n in range(90):
    broken = bytearray(content)
    if n % 3 == 0:
        del broken[int(random.integers(1, len(broken))):]
    else:
        for _ in range(int(random.integers(1, 5))):
            broken[int(random.integers(0, len(broken)))] = int(random.integers(0, 256))
    broken = bytes(broken)
    try:
        verify(broken)
        verdict = "sound"
    except RecipeError:
        verdict = "refused"
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            loaded = Interpreter(model_content=broken)
        except ValueError as error:
            os._exit(2 if "valid Flatbuffer" in str(error) else 1)
        try:
            loaded.allocate_tensors()
        except (RuntimeError, ValueError):
            os._exit(1)
        os._exit(0)
    found.append((n % 3 == 0, verdict, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
print(json.dumps(found))
"""


def test_broken_bytes_are_refused_and_crash_nobody(tmp_path: Path) -> None:
    """Also by the verifier of the schema's own making, which LiteRT runs when it loads a file (status 2)."""
    path = tmp_path / "model.tflite"
    path.write_bytes(_content())
    answer = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    assert {verdict for cut, verdict, _ in found if cut} == {"refused"}
    assert {status for cut, _, status in found if cut} == {2}
    assert {status for _, _, status in found} <= {0, 1, 2}
    assert {verdict for cut, verdict, _ in found if not cut} == {"refused", "sound"}
