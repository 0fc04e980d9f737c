"""Reads an ONNX model and says what it takes and gives.

For: refusing at the edge what the task cannot use, with what to do about it.
Not for: changing the graph (`converter.passes`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from msgspec import Struct
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from converter.errors import InputError
from converter.limits import MODEL_BYTES_MAX
from converter.opening import loaded, require_external
from converter.passes.intake import intake
from converter.passes.walk import dtype_name, graphs, tensors
from converter.quantized_input import dequantized, is_quantized
from wire.bundle import TensorSpec

_INTEGER_OPERATORS = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"})
"""Of the default domain; these and QLinear* hold no float model to measure against."""
_BLOCK_BYTES = 1024**2
"""Of a file that says no size of its own, such as a pipe."""
_DTYPES = frozenset(
    {"bool", "float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)
"""Of inputs and outputs; other floats were made float32 when the model was taken in."""


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
    """A model as it was given, in the form in which everything here reads it.

    Attributes:
        proto: `onnx.ModelProto`, weights in memory, without functions, float32.
        sha256: of the file, followed by the files of its external data in the order of their names.
        signature: what it takes and gives.
        decisions: what was changed on the way in, in words.
        quantized: the model with its Q/DQ where it carries some; `proto` is then its float twin.
        external: files of external data, sorted, as the model names them.
    """

    proto: onnx.ModelProto
    sha256: str
    signature: Signature
    decisions: tuple[str, ...] = ()
    quantized: onnx.ModelProto | None = None
    external: tuple[str, ...] = ()


def read_model(path: Path) -> SourceModel:
    """The model in a file.

    Raises:
        InputError: `model_missing`, `model_too_large`, `model_not_onnx`, `model_external_data`,
            `model_already_quantized`, or what `intake()` and `signature()` raise.
    """
    content = read_bytes(path, MODEL_BYTES_MAX, "model")
    digest = hashlib.sha256(content)
    proto = loaded(content, str(path), lambda error: _not_onnx(path, error))
    external = _take_in_external(path, proto, len(content))
    for name in external:
        digest.update(read_bytes(path.parent / name, MODEL_BYTES_MAX, "model"))
    try:
        onnx.checker.check_model(proto if external else content)
    except Exception as error:
        raise _not_onnx(path, error) from error
    _require_float(path, proto)
    proto, said = intake(proto)
    quantized = proto if is_quantized(proto) else None
    if quantized is not None:
        proto, words = dequantized(quantized)
        said += (words,)
    said = (f"weights taken in from {', '.join(external)}", *said) if external else said
    return SourceModel(
        proto=proto, sha256=digest.hexdigest(), signature=signature(proto), decisions=said,
        quantized=quantized, external=tuple(external),
    )  # fmt: skip


def _not_onnx(path: Path, error: Exception) -> InputError:
    said = str(error.args[0]) if isinstance(error, InputError) else str(error)
    first = (said.strip() or type(error).__name__).splitlines()[0]
    return InputError(
        "model_not_onnx",
        f"{path} is not a valid ONNX model ({first[:200]}); "
        "export the model to ONNX again and give the .onnx file",
    )


def read_bytes(path: Path, size_bytes_max: int, what: str) -> bytes:
    """A whole file, its size capped first.

    Raises:
        InputError: `WHAT_missing`, `WHAT_too_large`.
    """
    try:
        with path.open("rb") as file:
            # Python sets aside what is asked for, and of a cap of two gigabytes that would be all of it.
            pieces = [file.read(min(os.fstat(file.fileno()).st_size, size_bytes_max) + 1)]
            left_bytes = size_bytes_max + 1 - len(pieces[0])
            while left_bytes > 0 and (more := file.read(min(_BLOCK_BYTES, left_bytes))):
                pieces.append(more)
                left_bytes -= len(more)
            content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except OSError as error:
        raise InputError(
            f"{what}_missing", f"{what} {path} cannot be read: {error.strerror}; check the path"
        ) from error
    if len(content) > size_bytes_max:
        raise InputError(
            f"{what}_too_large", f"{path} is larger than the {size_bytes_max} bytes that are read"
        )
    return content


def _take_in_external(path: Path, proto: onnx.ModelProto, size_bytes: int) -> list[str]:
    """Loads weights that lie in other files; gives the names of those, sorted."""
    outside = [t for graph in graphs(proto.graph) for t in tensors(graph) if uses_external_data(t)]
    names = sorted({entry.value for t in outside for entry in t.external_data if entry.key == "location"})
    if not names:
        return []
    try:
        # The checker holds the names against the folder: no link, and nothing outside of it.
        onnx.checker.check_model(str(path))
        size_of = {name: (path.parent / name).stat().st_size for name in names}
        require_external(outside, size_of, MODEL_BYTES_MAX - size_bytes)
        load_external_data_for_model(proto, str(path.parent))
    except InputError as error:
        raise InputError(error.code, f"{path} is not opened: {error.args[0]}") from error
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            "model_external_data",
            f"{path} keeps weights in {', '.join(names)[:200]}, which cannot be read ({first[:200]}); "
            "put those files beside the model",
        ) from error
    return names


def _require_float(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses integer operators; Q/DQ pairs are another thing, they hold the float model."""
    held = {node.op_type for graph in graphs(proto.graph) for node in graph.node}
    integer = sorted(name for name in held if name in _INTEGER_OPERATORS or name.startswith("QLinear"))
    if integer:
        raise InputError(
            "model_already_quantized",
            f"{path} computes in integers already ({', '.join(integer)}); "
            "give the FP32 model that it was made from, or one with QuantizeLinear/DequantizeLinear pairs",
        )


def signature(proto: onnx.ModelProto) -> Signature:
    """What the graph takes and gives.

    Raises:
        InputError: `model_inputs` (none, one that is no tensor of numbers, without a first axis for
            samples or with a fixed one above 1), `model_outputs` (one that is no tensor of numbers, or no
            float32 output).
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    given = [value for value in proto.graph.input if value.name not in constants]
    inputs = tuple(_spec(value, "model_inputs", "input") for value in given)
    if not inputs:
        raise InputError("model_inputs", "the model takes no input: there is nothing to run it on")
    for spec in inputs:
        if not spec.shape or spec.shape[0] not in {None, 1}:
            raise InputError(
                "model_inputs",
                f"input {spec.name} has shape {words(spec.shape)}; its first axis must count samples: "
                "export the model with a free first axis or a batch of 1",
            )
    outputs = tuple(_spec(value, "model_outputs", "output") for value in proto.graph.output)
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


def _spec(value: onnx.ValueInfoProto, code: str, side: str) -> TensorSpec:
    kind = value.type.WhichOneof("value") or "untyped"
    if kind != "tensor_type":
        raise InputError(
            code,
            f"{side} {value.name} is a {kind.removesuffix('_type')}, not a tensor; export the model with "
            "tensors only (scikit-learn: options={'zipmap': False})",
        )
    tensor = value.type.tensor_type
    dtype = dtype_name(tensor.elem_type)
    if dtype not in _DTYPES:
        what = "text" if tensor.elem_type == onnx.TensorProto.STRING else dtype
        raise InputError(
            code, f"{side} {value.name} holds {what}; the model must take and give numbers: cut that part off"
        )
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every typed tensor of the main graph; needs inferred shapes."""
    graph = proto.graph
    values: Iterator[onnx.ValueInfoProto] = iter((*graph.value_info, *graph.input, *graph.output))
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
