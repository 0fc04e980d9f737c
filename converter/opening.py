"""A model's file looked at before any library opens it: the person's own is a file from outside too.

For: every file that `convert` and `inspect` read. The onnx package, ONNX Runtime and LiteRT are in C++ and
believe most of what a file says; what is cut off, asks for more bytes than it has, lies within itself too
deep, or stands for a thousand times its size, is refused by name before they see it.
Not for: what operators mean; the runtime says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from converter.errors import InputError
from converter.limits import FIELDS_MAX, MODEL_BYTES_MAX, NODES_MAX, REASON_CHARS_MAX
from wire import tflite_walk
from wire.errors import ShallopError
from wire.onnx_check import examined

_PATHS = re.compile(r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\x00-\x1f\x7f\\\ufffd]+")
"""Of weights in other files: exporters name them as people name models, with blanks and in any script."""

_TYPES = frozenset(onnx.TensorProto.DataType.values())
_TEXT = frozenset({onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING})
_Key = tuple[str, str, str]


def loaded(
    content: bytes, name: str, refused: Callable[[Exception], InputError], *, values: bool = True
) -> onnx.ModelProto:
    """The model as the onnx package reads it, once it was looked at.

    Args:
        content: of the file.
        name: that it is called by.
        refused: what is said where it is no model, of why.
        values: whether every tensor's are counted, which takes a copy of each.

    Raises:
        InputError: what `refused` gave; `model_external_data`, `model_too_large`.
    """
    try:
        require_onnx(content)
        proto = onnx.load_model_from_string(content)
        require_text(proto)
        if values:
            require_values(proto)
        require_expandable(proto)
    except InputError as error:
        if error.code == "model_not_onnx":
            raise refused(error) from error
        raise InputError(error.code, f"{name} is not opened: {error.args[0]}") from error
    except Exception as error:
        raise refused(error) from error
    return proto


def require_onnx(content: bytes) -> None:
    """Returns if the bytes can be an ONNX model.

    Raises:
        InputError: `model_not_onnx`, `model_external_data`; the message is the reason alone.
    """
    try:
        examined(content, fields_max=FIELDS_MAX, paths=_PATHS)
    except ShallopError as error:
        code = "model_external_data" if error.code == "external_path" else "model_not_onnx"
        raise InputError(code, str(error.args[0])[:REASON_CHARS_MAX]) from error


def require_tflite(content: bytes) -> None:
    """Returns if the bytes can be a TFLite model.

    Raises:
        WalkError: `not_tflite`.
    """
    tflite_walk.walk(content)
    tflite_walk.require_payloads(content)


def require_text(proto: onnx.ModelProto) -> None:
    """Returns if every name in the model is text: protobuf gives bytes where it is no UTF-8.

    Raises:
        InputError: `model_not_onnx`.
    """
    bodies = (body for one in proto.functions for body in _nested(one.node))
    for node in (*_nested(proto.graph.node), *bodies):
        if not all(isinstance(text, str) for text in _texts(node)):
            raise InputError("model_not_onnx", "a name in it is no text in UTF-8")
    held = (proto.graph.initializer, proto.graph.input, proto.graph.output, proto.graph.value_info)
    if not all(isinstance(one.name, str) for side in held for one in side):
        raise InputError("model_not_onnx", "a tensor's name in it is no text in UTF-8")


def require_values(proto: onnx.ModelProto) -> None:
    """Returns if every tensor is of a type that ONNX has, and holds as many values as its shape asks for.

    Those in raw bytes were counted by `require_onnx`; the checker counts none of the others.

    Raises:
        InputError: `model_not_onnx`.
    """
    for tensor in _tensors(proto):
        if tensor.data_type not in _TYPES:
            raise InputError("model_not_onnx", f"tensor {tensor.name[:80]!r} has type {tensor.data_type}")
        if tensor.data_type in _TEXT or tensor.HasField("raw_data") or uses_external_data(tensor):
            continue
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:
            raise InputError(
                "model_not_onnx", f"tensor {tensor.name[:80]!r} cannot be read: {str(error)[:200]}"
            ) from error


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Of the graph and the graphs within it, and of the functions' nodes."""
    yield from proto.graph.initializer
    for node in (
        *_nested(proto.graph.node),
        *(body for one in proto.functions for body in _nested(one.node)),
    ):
        for one in node.attribute:
            yield from (*one.tensors, *((one.t,) if one.HasField("t") else ()))
            for graph in _graphs(one):
                yield from graph.initializer


def _texts(node: onnx.NodeProto) -> Iterator[object]:
    yield from (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output)
    for one in node.attribute:
        yield one.name
        for graph in _graphs(one):
            yield from (
                value.name for side in (graph.initializer, graph.input, graph.output) for value in side
            )


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes, and those of the graphs within them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        waiting += [inner for one in node.attribute for graph in _graphs(one) for inner in graph.node]
        yield node


def _graphs(one: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    """Whatever type the attribute claims: a library may look at what it holds."""
    return [*one.graphs, one.g] if one.HasField("g") else one.graphs


def require_expandable(proto: onnx.ModelProto) -> None:
    """Returns if the model's functions, each written out wherever it is called, are no more than can be read.

    Two dozen functions of which each calls the next one twice stand for sixteen million nodes, and checker,
    inliner and runtime write them out.

    Raises:
        InputError: `model_too_large`, or `model_not_onnx`: a function calls itself.
    """
    bodies = {(one.domain, one.name, one.overload): one.node for one in proto.functions}
    held: dict[_Key, Counter[_Key | None]] = {key: _called(nodes, bodies) for key, nodes in bodies.items()}
    sizes: dict[_Key, int] = {}
    try:
        calls = {key: [one for one in found if one is not None] for key, found in held.items()}
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = _size(held[key], sizes)
    except CycleError as error:
        raise InputError("model_not_onnx", f"its function {error.args[1][0][1]!r} calls itself") from error
    if _size(_called(proto.graph.node, bodies), sizes) > NODES_MAX:
        raise InputError(
            "model_too_large",
            f"its functions, written out, are more than {NODES_MAX} nodes, which is too many",
        )


def _called(nodes: Iterable[onnx.NodeProto], functions: Iterable[_Key]) -> Counter[_Key | None]:
    """How often each function is called in these nodes and the graphs within them; None counts the rest."""
    known = set(functions)
    found: Counter[_Key | None] = Counter()
    for node in _nested(nodes):
        key = (node.domain, node.op_type, node.overload)
        found[key if key in known else None] += 1
    return found


def _size(called: Counter[_Key | None], sizes: dict[_Key, int]) -> int:
    found = sum(count * (1 if key is None else sizes[key]) for key, count in called.items())
    return min(found, NODES_MAX + 1)


def require_external(
    tensors: Iterable[onnx.TensorProto], size_of: Mapping[str, int], size_bytes_max: int
) -> None:
    """Returns if the weights in other files can be held in memory: each tensor reads a copy of its own.

    Args:
        tensors: whose values lie elsewhere.
        size_of: by path: bytes of those files.
        size_bytes_max: of the files, and of what is read of them.

    Raises:
        InputError: `model_too_large`: a file of one gigabyte may be named by a thousand tensors.
        KeyError, ValueError: without a place, or with an offset or a length that is no number.
    """
    read_bytes = 0
    for tensor in tensors:
        told = {entry.key: entry.value for entry in tensor.external_data}
        to_end = size_of[told["location"]] - int(told.get("offset", "0"))
        # onnx reads to the end of the file where no length is given, and where it is 0.
        read_bytes += int(told.get("length", "0")) or max(0, to_end)
    if max(read_bytes, sum(size_of.values())) > size_bytes_max:
        raise InputError(
            "model_too_large",
            f"its tensors read {read_bytes} bytes of {sum(size_of.values())} in other files; with the model "
            f"itself at most {MODEL_BYTES_MAX} are read",
        )
