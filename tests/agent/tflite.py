"""Small models as ONNX and as TFLite, for the tests of the trial worker: the twins that a release holds.

For: a classifier of images that lie as NCHW in ONNX and as NHWC in the file, quantized products whose file
takes int8 or uint8, and changing what the schema's classes can change in a file.
Not for: testing the writer (`tests/converter/tflite`), or accuracy on real data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flatbuffers
import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import helper

from agent.worker.job import ModelRun, TrialJob
from converter.litert import open_session
from converter.tflite import Options, Written, write
from converter.tflite.schema import schema
from tests.agent.models import CLASSES, FAST, FEATURES, Array, save, save_shard, scores, value, weight
from wire.bundle import LABELS_KEY, Axes, TensorSpec, fp32_key, host_key, input_key

IMAGE = (2, 6, 5)
"""Channels, height, width: no two alike, so that a wrong order of axes cannot pass."""
ONNX_VARIANT = "onnxruntime/float_wf32_af32"
TFLITE_VARIANTS = {
    "ai-edge-litert": "ai_edge_litert/float_wf32_af32",
    "tflite-runtime": "tflite_runtime/float_wf32_af32",
}
SCALE_IN, SCALE_OUT = np.float32(0.03), np.float32(0.1)
Edge = Literal["float32", "int8", "uint8"]


class Twins(Struct, frozen=True, kw_only=True):
    """One model in two files; `axes` are the TFLite file's."""

    onnx: Path
    tflite: Path
    axes: dict[str, Axes]


def written(path: Path, model: Path, edge: Edge = "float32") -> Written:
    """The ONNX file as TFLite beside it."""
    made = write(onnx.load(model), Options(edge=edge))
    path.write_bytes(made.content)
    return made


def images(folder: Path, seed: int = 4) -> Twins:
    """A convolution, its mean over the picture, a product: three classes."""
    rng = np.random.default_rng(seed)
    constants = {
        "kernel": rng.standard_normal((4, IMAGE[0], 3, 3)).astype(np.float32),
        "w": rng.standard_normal((4, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    model = save(folder / "model.onnx", nodes, constants, inputs=[value("x", ["N", *IMAGE])])
    made = written(folder / "model.tflite", model)
    return Twins(onnx=model, tflite=folder / "model.tflite", axes=made.axes)


def pictures(n: int = 30, seed: int = 7) -> Array:
    """Each of a tint of its own, so that the model gives them different classes."""
    rng = np.random.default_rng(seed)
    tints = rng.standard_normal((n, IMAGE[0], 1, 1)) * 3
    return (rng.standard_normal((n, *IMAGE)) + tints).astype(np.float32)


def quantized_product(folder: Path, edge: Edge) -> Twins:
    """Scores of eight features, all integers inside; the file takes and gives what `edge` says."""
    matrix = weight()
    step = np.float32(np.abs(matrix).max() / 127)
    stored = np.rint(matrix / step).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "sy", "zy"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "sx": np.asarray(SCALE_IN), "zx": np.array(120, np.uint8), "wq": stored, "sw": np.asarray(step),
        "zw": np.array(0, np.int8), "sy": np.asarray(SCALE_OUT), "zy": np.array(131, np.uint8),
    }  # fmt: skip
    model = save(folder / "model.onnx", nodes, constants)
    made = written(folder / "model.tflite", model, edge)
    return Twins(onnx=model, tflite=folder / "model.tflite", axes=made.axes)


def answered(twins: Twins, x: Array) -> Array:
    """What the host's door to LiteRT gives for each sample."""
    session = open_session(twins.tflite.read_bytes(), axes=twins.axes)
    return np.concatenate([session.run(["y"], {"x": x[i : i + 1]})[0] for i in range(len(x))])


def run_of(twins: Twins, runtime: str) -> ModelRun:
    """The file of that runtime, on trial."""
    if runtime == "onnxruntime":
        path, variant, axes = twins.onnx, ONNX_VARIANT, dict[str, Axes]()
    else:
        path, variant, axes = twins.tflite, TFLITE_VARIANTS[runtime], twins.axes
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelRun(model_path=str(path), runtime=runtime, variant=variant, digest=digest, axes=axes)


def shard_of(path: Path, twins: Twins, x: Array) -> Path:
    """Labels (of scores) and FP32 outputs are ONNX's, the host's outputs those of each runtime here."""
    reference = scores(twins.onnx, x)
    labels = {LABELS_KEY: reference.argmax(axis=1).astype(np.int64)} if reference.ndim == 2 else {}
    arrays = {
        input_key("x"): x,
        **labels,
        fp32_key("y"): reference,
        host_key(ONNX_VARIANT, "y"): reference,
        host_key(TFLITE_VARIANTS["ai-edge-litert"], "y"): answered(twins, x),
    }
    return save_shard(path, arrays)


def job_of(folder: Path, twins: Twins, x: Array, runtime: str, incumbent: ModelRun | None = None) -> TrialJob:
    """A trial of the file of that runtime on the samples."""
    return TrialJob(
        candidate=run_of(twins, runtime),
        incumbent=incumbent,
        shards=(str(shard_of(folder / "shard.npz", twins, x)),),
        shard_indices=(0,),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, *x.shape[1:])),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, CLASSES)),),
        settings=FAST,
    )


def features(n: int = 40, seed: int = 7) -> Array:
    """Some of them beyond what the file's integers can hold."""
    return (np.random.default_rng(seed).standard_normal((n, FEATURES)) * 2).astype(np.float32)


def rewritten(path: Path, change: Callable[[Any], None]) -> Path:
    """The file after `change` of its object tree."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def one_operator(path: Path, kind: str, tensors: Mapping[str, str], inputs: Sequence[int] = (0,)) -> Path:
    """A file of one operator without options: `x` in, `y` out, each of one value of the type given."""
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, dtype in tensors.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, [1, 1], 0
        tensor.type = getattr(schema.TensorType, dtype)
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(inputs), [1]
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [1]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
