"""A model's file looked at before its runtime opens it.

For: the worker, whose runtimes are written in C++ and believe most of what a file says. What is cut off, asks
for more bytes than it has, lies within itself too deep, names files of weights elsewhere, or takes and gives
something else than the release says, is refused by name. The file is mapped, not read: of 100 MB only the few
pages are touched that do not hold weights.
Not for: what operators mean; the runtime says so. No numpy here, and no runtime.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from agent.errors import FinalError
from wire import onnx_check, tflite_walk
from wire.bundle import TensorSpec
from wire.errors import ShallopError

FILE_BYTES_MAX = 4 * 1024**3
_DETAIL_CHARS_MAX = 500
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""By TensorProto.DataType; of other types nothing is said here."""

Shape = tuple[int | None, ...]
Axes = Mapping[str, tuple[int, ...]]


class Edge(Struct, frozen=True):
    """An input or output as the file has it; None is what it leaves open."""

    name: str
    dtype: str | None
    shape: Shape | None


class Looked(Struct, frozen=True):
    """What a file takes, gives and needs beside it."""

    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    external: tuple[onnx_check.External, ...] = ()


def require(
    path: Path, runtime: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], axes: Axes
) -> None:
    """Returns if a runtime may open this file; of a runtime that is not known nothing is asked.

    Args:
        path: of the model.
        runtime: as the variant names it.
        inputs: that the release says it takes, all of them; empty where it says nothing.
        outputs: that it must give, among others.
        axes: by name: the file's tensor is the release's, transposed by these.

    Raises:
        FinalError: `model_load_failed`: there is no file; `model_malformed`; `model_external_data`;
            `output_mismatch`: it takes or gives something else than the release says.
    """
    reader = _READERS.get(runtime)
    if reader is None:
        return
    found = _mapped(path, reader)
    _require_external(path.parent, found.external)
    if inputs:
        _require_names("takes", found.inputs, inputs, every=True)
        _require_shapes(found.inputs, inputs, axes)
    _require_names("gives", found.outputs, outputs, every=False)


def _mapped(path: Path, reader: Callable[[memoryview], Looked]) -> Looked:
    """What the reader says of a file's bytes; nothing keeps the file mapped afterwards."""
    try:
        with path.open("rb") as file:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= FILE_BYTES_MAX:
                raise _malformed(f"it has {status.st_size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                view = memoryview(content)
                found = _read(view, reader)
                view.release()
    except OSError as error:
        raise FinalError("model_load_failed", f"the model's file cannot be read: {error}") from None
    if isinstance(found, Looked):
        return found
    raise found


def _read(view: memoryview, reader: Callable[[memoryview], Looked]) -> Looked | FinalError:
    """The error is given back and not raised: its frames would hold the file open."""
    try:
        return reader(view)
    except ShallopError as error:
        external = error.code == "external_path"
        words = str(error.args[0])[:_DETAIL_CHARS_MAX]
        return FinalError("model_external_data", words) if external else _malformed(words)


def _malformed(why: str) -> FinalError:
    return FinalError("model_malformed", f"the model's file is not opened: {why}")


# --- formats


def _onnx(view: memoryview) -> Looked:
    found = onnx_check.examined(view)
    inputs, outputs = (
        tuple(Edge(one.name, _DTYPES.get(one.data_type or 0), one.shape) for one in side)
        for side in (found.inputs, found.outputs)
    )
    return Looked(inputs, outputs, found.external)


def _tflite(view: memoryview) -> Looked:
    """Its types are not compared: the worker turns samples into those that the file takes."""
    graph = tflite_walk.walk(view)
    tflite_walk.require_payloads(view)
    sides = []
    for named in tflite_walk.edges(view):
        if any(not 0 <= place < len(graph.tensors) for place in named.values()):
            raise tflite_walk.WalkError("not_tflite", "its signature names a tensor that it does not have")
        sides.append(tuple(Edge(name, None, graph.tensors[place].shape) for name, place in named.items()))
    return Looked(sides[0], sides[1])


_READERS: Mapping[str, Callable[[memoryview], Looked]] = {
    "onnxruntime": _onnx,
    "ai-edge-litert": _tflite,
    "tflite-runtime": _tflite,
}


# --- what was promised


def _require_external(folder: Path, external: Sequence[onnx_check.External]) -> None:
    """Weights lie in plain files beside the model, as long as they are said to be."""
    base = folder.resolve()
    for one in external:
        place = base / one.path
        try:
            # A link would lead the runtime to whatever it points to.
            size = place.stat().st_size if place.is_file() and place.resolve() == place else -1
        except OSError:
            size = -1
        if size < 0:
            raise FinalError(
                "model_external_data", f"its weights should lie in {one.path}, which is no file here"
            )
        if one.offset + (one.size_bytes or 0) > size:
            raise FinalError(
                "model_external_data",
                f"{one.path} has {size} bytes, the model asks for {one.size_bytes} from byte {one.offset} on",
            )


def _require_names(verb: str, found: Sequence[Edge], promised: Sequence[TensorSpec], *, every: bool) -> None:
    have, want = {edge.name for edge in found}, {spec.name for spec in promised}
    if have != want if every else not want <= have:
        raise FinalError(
            "output_mismatch",
            f"the model {verb} {_listed(have)}, the release says {_listed(want)}",
        )


def _listed(names: set[str]) -> str:
    shown = [name[:60] for name in sorted(names)[:8]]
    return f"{shown}" if len(names) <= len(shown) else f"{shown} and {len(names) - len(shown)} more"


def _require_shapes(found: Sequence[Edge], promised: Sequence[TensorSpec], axes: Axes) -> None:
    """Types and sizes, the first axis left aside: a file may take several samples at once."""
    edges = {edge.name: edge for edge in found}
    for spec in promised:
        edge = edges[spec.name]
        if edge.dtype is not None and edge.dtype != spec.dtype:
            raise FinalError(
                "output_mismatch", f"input {spec.name} is {edge.dtype}, the release says {spec.dtype}"
            )
        shape: Shape = spec.shape
        order = axes.get(spec.name)
        if order is not None and sorted(order) == list(range(len(shape))):
            shape = tuple(shape[axis] for axis in order)
        # A release's shape without axes is one of which the converter knew nothing.
        if edge.shape is not None and shape and not _fits(edge.shape, shape):
            raise FinalError(
                "output_mismatch",
                f"input {spec.name} is {list(shape)} by the release, the file takes {list(edge.shape)}; a "
                "variant's axes say how its tensors lie",
            )


def _fits(have: Shape, want: Shape) -> bool:
    if len(have) != len(want):
        return False
    pairs = zip(have[1:], want[1:], strict=True)
    return all(None in pair or pair[0] == pair[1] for pair in pairs)
