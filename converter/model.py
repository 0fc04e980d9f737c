"""Reads an ONNX model and says what it takes and gives.

For: refusing at the edge what the task cannot use, with what to do about it.
Not for: changing the graph (`converter.passes`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from msgspec import Struct

from converter.errors import InputError
from converter.limits import MODEL_BYTES_MAX
from wire.bundle import TensorSpec

_QUANTIZED_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


class Signature(Struct, frozen=True, kw_only=True):
    """What a model takes and gives.

    Attributes:
        inputs: in the model's order.
        outputs: the first float32 one of shape [N, classes] first, else the first float32 one; the others
            in the model's order.
        classes: of the first output where it has two axes; None where the graph leaves it open.
        batch_free: whether the first axis of every input may be longer than one.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: int | None
    batch_free: bool

    @property
    def answer(self) -> str:
        """Name of the output that holds the answer where the data set names no other."""
        return self.outputs[0].name


class SourceModel(Struct, frozen=True, kw_only=True):
    """A model as it was given.

    Attributes:
        proto: `onnx.ModelProto`.
        sha256: of the file.
        signature: what it takes and gives.
    """

    proto: onnx.ModelProto
    sha256: str
    signature: Signature


def read_model(path: Path) -> SourceModel:
    """The model in a file.

    Raises:
        InputError: `model_missing`, `model_too_large`, `model_not_onnx`, `model_external_data`,
            `model_already_quantized`, or what `signature()` raises.
    """
    content = read_bytes(path, MODEL_BYTES_MAX, "model")
    try:
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(content)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            "model_not_onnx",
            f"{path} is not a valid ONNX model ({first[:200]}); "
            "export the model to ONNX again and give the .onnx file",
        ) from error
    _require_plain(path, proto)
    digest = hashlib.sha256(content).hexdigest()
    return SourceModel(proto=proto, sha256=digest, signature=signature(proto))


def read_bytes(path: Path, size_bytes_max: int, what: str) -> bytes:
    """A whole file, its size capped first.

    Raises:
        InputError: `WHAT_missing`, `WHAT_too_large`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(size_bytes_max + 1)
    except OSError as error:
        raise InputError(
            f"{what}_missing", f"{what} {path} cannot be read: {error.strerror}; check the path"
        ) from error
    if len(content) > size_bytes_max:
        raise InputError(
            f"{what}_too_large", f"{path} is larger than the {size_bytes_max} bytes that are read"
        )
    return content


def _require_plain(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses weights outside the file and graphs that are quantized already."""
    external = onnx.TensorProto.EXTERNAL
    if any(tensor.data_location == external for tensor in proto.graph.initializer):
        raise InputError(
            "model_external_data",
            f"{path} keeps weights in other files; save it as one: onnx.save(onnx.load(PATH), NEW)",
        )
    if any(node.op_type in _QUANTIZED_OPERATORS for node in proto.graph.node):
        raise InputError(
            "model_already_quantized",
            f"{path} holds quantized operators already; give the FP32 model it was made from",
        )


def signature(proto: onnx.ModelProto) -> Signature:
    """What the graph takes and gives.

    Raises:
        InputError: `model_inputs` (no float32 input, an input without a first axis for samples or with
            a fixed one above 1), `model_outputs` (no float32 output).
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_spec(value) for value in proto.graph.input if value.name not in constants)
    if not any(spec.dtype == "float32" for spec in inputs):
        found = ", ".join(f"{spec.name} ({spec.dtype})" for spec in inputs) or "none"
        raise InputError("model_inputs", f"the model has no float32 input to quantize; its inputs: {found}")
    for spec in inputs:
        if not spec.shape or spec.shape[0] not in {None, 1}:
            raise InputError(
                "model_inputs",
                f"input {spec.name} has shape {words(spec.shape)}; its first axis must count samples: "
                "export the model with a free first axis or a batch of 1",
            )
    outputs = tuple(_spec(value) for value in proto.graph.output)
    answers = [spec for spec in outputs if _is_answer(spec)]
    answers += [spec for spec in outputs if spec.dtype == "float32" and spec.shape]
    if not answers:
        found = ", ".join(f"{spec.name} {spec.dtype} {words(spec.shape)}" for spec in outputs)
        raise InputError(
            "model_outputs", f"the model must give float32 numbers for each sample; this one gives {found}"
        )
    rest = tuple(spec for spec in outputs if spec is not answers[0])
    return Signature(
        inputs=inputs,
        outputs=(answers[0], *rest),
        classes=answers[0].shape[1] if len(answers[0].shape) == 2 else None,
        batch_free=all(spec.shape[0] is None for spec in inputs),
    )


def _is_answer(spec: TensorSpec) -> bool:
    return spec.dtype == "float32" and len(spec.shape) == 2 and spec.shape[0] in {None, 1}


def words(shape: tuple[int | None, ...]) -> str:
    """A shape for people, such as `[?, 10]`."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype_name(tensor.elem_type), shape=shape)


def dtype_name(elem_type: int) -> str:
    """Numpy's name of an ONNX element type, `unknown` where it has none."""
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, ValueError):
        return "unknown"


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every typed tensor of the main graph; needs inferred shapes."""
    graph = proto.graph
    values: Iterator[onnx.ValueInfoProto] = iter((*graph.value_info, *graph.input, *graph.output))
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
