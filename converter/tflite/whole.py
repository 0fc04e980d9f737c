"""Whole runs of an ONNX graph and its TFLite file beside each other.

For: `Shown`, ONNX Runtime giving up the stored tensors of a whole graph; `Whole`, the outputs of both on real
samples and the first stored tensor that is not equal.
Not for: single operators (`converter.tflite.parity`).

Both runtimes are asked twice: for the outputs as every user asks, and for stored tensors by a copy of the
graph and of the file with more outputs. Where a copy's own outputs are not the plain ones, its kernels are
others, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter import litert
from converter.dataset import Feeds
from converter.runtime import open_session
from converter.tflite import Lowered, Written
from converter.tflite.cuts import laid_out
from converter.tflite.lowering import Value
from converter.tflite.proof import Divergence, EndProof
from converter.tflite.serialize import serialize
from converter.tflite.tensors import Graph

Array = NDArray[Any]


class Shown:
    """ONNX Runtime on a graph, with a copy that gives up further tensors."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], config: Mapping[str, str]) -> None:
        self._outputs = [value.name for value in model.graph.output]
        self._names = list(names)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        self._copy = open_session(copy.SerializeToString(), config=config)
        self._plain = open_session(model.SerializeToString(), config=config)

    def stored(self, feeds: Feeds) -> dict[str, Array]:
        """Inputs, further tensors and outputs by name; unsigned bytes as the signed ones of the file."""
        names = [*self._outputs, *self._names]
        found = dict(zip(names, self._copy.run(names, feeds), strict=True))
        return {**feeds, **{name: _signed(array) for name, array in found.items()}}

    def outputs(self, feeds: Feeds) -> dict[str, Array]:
        """As every user asks."""
        return dict(zip(self._outputs, self._plain.run(self._outputs, feeds), strict=True))


class Whole:
    """Sums over samples."""

    def __init__(self, lowered: Lowered, written: Written, shown: Shown) -> None:
        self._source, self._shown = lowered.source, shown
        self._plain = litert.open_session(written.content, axes=written.axes)
        self._values = _unique(lowered)
        tensors = {f"{place}": value.tensor for place, value in enumerate(self._values.values())}
        graph = Graph(operators=lowered.graph.operators, inputs=lowered.graph.inputs, outputs=tensors)
        self._inner = litert.open_session(serialize(graph), axes=written.axes) if tensors else None
        self._distances: list[Array] = []
        self._output_equal, self._output_elements, self._samples = 0, 0, 0
        self._worst_difference, self._agreed, self._asked = 0.0, 0, 0
        self._steps_worst: int | None = None
        self._differ: dict[str, Divergence] = {}
        self.notes: tuple[str, ...] = ()

    def add(self, feeds: Feeds) -> None:
        """One sample through both."""
        theirs, named = self._shown.outputs(feeds), self._shown.stored(feeds)
        mine = dict(zip(theirs, self._plain.run(list(theirs), feeds), strict=True))
        inner = self._stored(feeds)
        if any(not np.array_equal(_signed(theirs[name]), named[name], equal_nan=True) for name in theirs):
            self._note("ONNX Runtime answers otherwise when it is asked for stored tensors too")
        for name, array in theirs.items():
            self._output(name, mine[name], array)
        for name, value in self._values.items():
            self._tensor(name, inner[name], laid_out(value, named[name]))
        self._arguments(*(found[self._source.outputs[0]] for found in (mine, theirs)))
        self._samples += 1

    def _stored(self, feeds: Feeds) -> dict[str, Array]:
        if self._inner is None:
            return {}
        answers = self._inner.invoke(self._inner.prepare(feeds))
        found = dict(zip(self._inner.output_names, answers, strict=True))
        return {name: found[f"{place}"] for place, name in enumerate(self._values)}

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes = (*self.notes, text)

    def _output(self, name: str, mine: Array, theirs: Array) -> None:
        self._output_equal += int(np.count_nonzero(mine == theirs))
        self._output_elements += theirs.size
        apart = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
        self._worst_difference = max(self._worst_difference, float(apart.max(initial=0.0)))
        quant = self._source.quants.get(self._source.aliases.get(name, ""))
        if quant is not None:
            found = int(np.rint(apart / float(quant.scale)).max(initial=0))
            self._steps_worst = max(self._steps_worst or 0, found)

    def _tensor(self, name: str, mine: Array, theirs: Array) -> None:
        distance = steps(mine, theirs)
        if name in self._differ or not distance.any():
            return
        op = next(op for op in self._source.ops if name in op.outputs)
        elements, equal, worst = summed([distance])
        self._differ[name] = Divergence(
            tensor=name, node=op.name, op_type=op.op_type, equal=equal / elements, worst_steps=worst,
            sample=self._samples,
        )  # fmt: skip

    def _arguments(self, mine: Array, theirs: Array) -> None:
        if theirs.ndim and theirs.shape[-1] > 1:
            same = mine.argmax(-1) == theirs.argmax(-1)
            self._agreed += int(np.count_nonzero(same))
            self._asked += same.size

    def proof(self) -> EndProof:
        """What was found; at least one sample was added."""
        first = next((self._differ[name] for name in self._values if name in self._differ), None)
        return EndProof(
            samples=self._samples,
            outputs_equal=self._output_equal / max(self._output_elements, 1),
            worst_steps=self._steps_worst,
            worst_difference=self._worst_difference,
            argmax_agreement=self._agreed / self._asked if self._asked else None,
            tensors_equal=len(self._values) - len(self._differ),
            tensors=len(self._values),
            first_divergence=first,
        )


def _unique(lowered: Lowered) -> dict[str, Value]:
    """Stored tensors that operators make, each place of the file once, in the order of the graph."""
    taken = {id(tensor) for tensor in lowered.graph.inputs.values()}
    found: dict[str, Value] = {}
    for op in lowered.source.ops:
        for name in op.outputs:
            value = lowered.made.get(name)
            if name in lowered.source.quants and value is not None and id(value.tensor) not in taken:
                taken.add(id(value.tensor))
                found[name] = value
    return found


def _signed(array: Array) -> Array:
    """What the file holds of stored bytes."""
    return (array.astype(np.int16) - 128).astype(np.int8) if array.dtype == np.uint8 else array


def steps(mine: Array, theirs: Array) -> NDArray[np.int64]:
    """Distance of stored integers, element by element.

    Raises:
        ValueError: they have not the same shape.
    """
    if mine.shape != theirs.shape:
        raise ValueError(f"{list(mine.shape)} beside {list(theirs.shape)}")
    return np.abs(mine.astype(np.int64) - theirs.astype(np.int64))


def summed(distances: Iterable[NDArray[np.int64]]) -> tuple[int, int, int]:
    """Elements, how many are equal, and the largest distance."""
    elements = equal = worst = 0
    for one in distances:
        elements += one.size
        equal += int(np.count_nonzero(one == 0))
        worst = max(worst, int(one.max(initial=0)))
    return elements, equal, worst
