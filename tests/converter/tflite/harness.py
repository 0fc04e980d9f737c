"""Runs a written file beside what it was made of.

For: operators' tests: float against ONNX's reference evaluator, INT8 against ONNX Runtime on the same stored
inputs, in steps of the stored output.
Not for: whole conversions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from msgspec import Struct
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from converter.litert import LitertSession
from converter.neighbour import Neighbour
from converter.quantize.emit import emit
from converter.quantize.operators import ACCELERATOR
from converter.quantize.plan import make_plan
from converter.recipe import parse
from converter.runtime import open_session
from converter.tflite import Options, Written, write
from tests.conftest import ROOT
from tests.converter.quantizing import inputs, material

Array = NDArray[Any]

_STEPS_OLDER = 2
"""tflite-runtime 2.14 is another machine (FACTS.md section 1, Parity): attention came out 2 steps off."""


class Session:
    """A file in LiteRT's default kernels, fed and read with ONNX's names and axes."""

    def __init__(self, written: Written) -> None:
        self._axes = written.axes
        self._interpreter = Interpreter(model_content=written.content, num_threads=1)
        self._interpreter.allocate_tensors()
        self._runner = self._interpreter.get_signature_runner()

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        given = {name: self._laid(name, array) for name, array in feeds.items()}
        return {name: self._meant(name, array) for name, array in self._runner(**given).items()}

    def _laid(self, name: str, array: Array) -> Array:
        axes = self._axes.get(name)
        return array if axes is None else np.ascontiguousarray(array.transpose(axes))

    def _meant(self, name: str, array: Array) -> Array:
        axes = self._axes.get(name)
        return array if axes is None else array.transpose(np.argsort(axes))

    def scale_of(self, output: str) -> tuple[float, int]:
        """Scale and zero point of a stored output."""
        found = self._runner.get_output_details()[output]["quantization"]
        return float(found[0]), int(found[1])


class Steps(Struct, frozen=True, kw_only=True):
    """How far stored outputs of LiteRT and ONNX Runtime are apart.

    Attributes:
        worst: in steps of the output's scale.
        equal: share of equal elements.
        integer: whether every operator of the file computes in integers.
        written: the file.
    """

    worst: int
    equal: float
    integer: bool
    written: Written


def feeds_of(made: onnx.ModelProto, seed: int = 7) -> dict[str, Array]:
    """One sample for each input: floats of both signs, or small integers."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in made.graph.input:
        dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = (
            random.normal(0, 1, dims).astype(kind)
            if kind.kind == "f"
            else random.integers(0, 4, dims).astype(kind)
        )
    return found


@lru_cache(maxsize=1)
def older() -> Neighbour | None:
    """tflite-runtime in its own environment, one process for all files; None where it is not installed.

    `test_older_runtime.py` says so by name then.
    """
    python = ROOT / ".venv-tflite-runtime" / "bin" / "python"
    return Neighbour(str(python)) if python.exists() else None


def check_older(written: Written, feeds: dict[str, Array], wanted: dict[str, Array], atol: float) -> None:
    """The same file loads in tflite-runtime too and answers alike, reals within `atol`."""
    runtime = older()
    if runtime is None:
        return
    runtime.load(written.content)
    session = LitertSession(runtime, written.axes)
    found = dict(zip(session.output_names, session.run(None, feeds), strict=True))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=atol, rtol=atol)


def check_float(made: onnx.ModelProto, atol: float = 1e-5, options: Options | None = None) -> Written:
    """The file answers as ONNX's reference evaluator does, on a seeded sample."""
    written = write(made, options)
    feeds = feeds_of(made)
    wanted = ReferenceEvaluator(made).run(None, feeds)
    got = Session(written).run(feeds)
    check_older(written, feeds, got, atol=max(atol, 1e-4))
    for output, expected in zip(made.graph.output, wanted, strict=True):
        mine = got[output.name]
        assert mine.shape == expected.shape, (output.name, mine.shape, expected.shape)
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(mine, expected, atol=atol, rtol=atol)
        else:
            np.testing.assert_array_equal(mine, expected)
    return written


def quantized(made: onnx.ModelProto, recipe: str = "static_wi8_ai8_pc_minmax") -> onnx.ModelProto:
    """A QDQ graph of every operator that can be quantized, calibrated on `quantizing.inputs`; input `x`."""
    known, how = material(made), parse(recipe)
    ranges = known.calibration.ranges
    return emit(known.model, make_plan(known, how, ranges, placement=ACCELERATOR))


def compare_int8(graph: onnx.ModelProto, samples: Array, options: Options | None = None) -> Steps:
    """LiteRT beside ONNX Runtime on a QDQ graph of one input `x`, in steps of the stored first output.

    The file has int8 edges, so both read the same stored integers.
    """
    written = write(graph, options or Options(edge="int8"))
    session, other = Session(written), open_session(graph.SerializeToString())
    name = graph.graph.output[0].name
    scale, zero = session.scale_of(name)
    worst, equal = 0, []
    tensor = _input_params(graph)
    for i in range(len(samples)):
        x = samples[i : i + 1]
        theirs = other.run([name], {"x": x})[0]
        stored = np.clip(np.rint(x / np.float32(tensor[0])) + tensor[1], -128, 127).astype(np.int8)
        mine = session.run({"x": stored})[name].astype(np.int32)
        expected = np.rint(theirs / scale).astype(np.int32) + zero
        if not i:
            reals = (mine - zero) * np.float32(scale)
            check_older(written, {"x": stored}, {name: reals}, atol=(_STEPS_OLDER + 0.01) * scale)
        worst = max(worst, int(np.abs(mine - expected).max(initial=0)))
        equal.append(float((mine == expected).mean()))
    return Steps(worst=worst, equal=float(np.mean(equal)), integer=not written.float_left, written=written)


def _input_params(graph: onnx.ModelProto) -> tuple[float, int]:
    """Scale and signed zero point of the pair behind input `x`."""
    node = next(n for n in graph.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    zero = values[node.input[2]]
    return float(values[node.input[1]]), int(zero) - (128 if zero.dtype == np.uint8 else 0)


def steps_of(made: onnx.ModelProto, recipe: str = "static_wi8_ai8_pc_minmax") -> Steps:
    """`compare_int8` of a float graph quantized by `recipe`, on its calibration inputs."""
    return compare_int8(quantized(made, recipe), inputs(made))
