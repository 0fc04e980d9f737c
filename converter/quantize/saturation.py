"""Which layers overflow 16 bits on x86 without VNNI.

For: emulating VPMADDUBSW, which adds two products of an unsigned and a signed byte in a *saturating* 16-bit
number, on the inputs that calibration samples really give each layer; so that weights are reduced to 7 bits
only where sums would be cut (onnxruntime#5849, #6004).
Not for: hosts or targets with VNNI or ARM, whose kernels add in 32 bits; or for choosing a recipe.

Pairs are neighbours along the shared axis as ONNX Runtime packs it: for a convolution, channels last
(filter position, then channel); for Gemm and MatMul the rows of B. Depthwise convolutions have a kernel of
their own that adds in 32 bits. Inputs are FP32's, quantized as the plan says.

The work is bounded: at most `POSITIONS_MAX` output positions of a layer, an even spread over the samples,
and of these as many as keep within `_SUMS_MAX` sums. The counts are of what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import helper

from converter.dataset import Samples
from converter.quantize.plan import Plan
from converter.quantize.qparams import DTYPES, Floats, QParams, quantize
from converter.quantize.view import View, attribute
from converter.runtime import open_session

Ints = NDArray[np.int32]

SAMPLES_MAX = 32
POSITIONS_MAX = 512
"""Output positions of one layer, over all samples."""
_SUMS_MAX = 20_000_000
"""Of one layer, computed exactly; about a second of numpy."""
_HIGH, _LOW = 2**15 - 1, -(2**15)
_RISK = 7 / 8
"""Of 16 bits: a channel that came this near on few positions of few samples will go beyond on others."""
_BYTE_MAX = 255


class Saturating(Struct, frozen=True, kw_only=True):
    """A layer whose 16-bit sums are cut.

    Attributes:
        node: its name.
        saturated: sums beyond 16 bits among those looked at.
        sums: all sums at the positions looked at.
        samples: whose activations were looked at.
        channels: outputs with a sum beyond 7/8 of 16 bits: what to reduce.
    """

    node: str
    saturated: int
    sums: int
    samples: int
    channels: tuple[int, ...]

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.node}: {self.saturated} of {self.sums} 16-bit sums saturate on {self.samples} samples"


def saturating(
    model: onnx.ModelProto, plan: Plan, samples: Samples, samples_max: int = SAMPLES_MAX
) -> tuple[Saturating, ...]:
    """The layers of a plan that saturate, in the graph's order.

    Args:
        model: the FP32 graph that the plan was made of.
        plan: with 8-bit activations and weights; layers with others are left out.
        samples: the calibration set; its first `samples_max` are run, one by one.
        samples_max: see there.

    Raises:
        Exception: what the runtime raises on this graph.
    """
    view = View(model)
    layers = [layer for layer in _layers(view, plan) if bound(layer.matrices) > 0]
    if not layers:
        return ()
    tensors = sorted({layer.node.input[0] for layer in layers})
    session = open_session(_watching(view.model, tensors).SerializeToString(), optimization="BASIC")
    count = min(samples.n, samples_max)
    each = max(1, POSITIONS_MAX // count)
    found = [_Tally(layer) for layer in layers]
    for feeds in islice(samples.singles(0, count), count):
        values = dict(zip(tensors, session.run(tensors, feeds), strict=True))
        for tally in found:
            tally.add(_rows(tally.layer, values[tally.layer.node.input[0]], each), _SUMS_MAX // count)
    return tuple(tally.result(count) for tally in found if tally.saturated)


class _Tally:
    """What was counted of one layer."""

    def __init__(self, layer: _Layer) -> None:
        self.layer = layer
        self.saturated = self._sums = 0
        self._risky = [np.zeros(matrix.shape[1], dtype=bool) for matrix in layer.matrices]

    def add(self, rows: list[Ints], sums_max: int) -> None:
        for one, matrix, risky in zip(rows, self.layer.matrices, self._risky, strict=True):
            saturated, near = count_saturated(one, matrix, sums_max)
            self.saturated += saturated
            np.logical_or(risky, near, out=risky)
            self._sums += len(one) * -(-len(matrix) // 2) * matrix.shape[1]

    def result(self, samples: int) -> Saturating:
        channels = np.flatnonzero(np.concatenate(self._risky))
        return Saturating(
            node=self.layer.node.name, saturated=self.saturated, sums=self._sums, samples=samples,
            channels=tuple(int(channel) for channel in channels),
        )  # fmt: skip


class _Layer(Struct, frozen=True, kw_only=True, eq=False):
    """A layer's stored weights as matrices `[K, N]`, one for each group, and its filter's size."""

    node: onnx.NodeProto
    matrices: list[Ints]
    kernel: tuple[int, ...]
    params: QParams


def _layers(view: View, plan: Plan) -> Iterator[_Layer]:
    for name, weight in plan.weights.items():
        node, params = view.by_name[name], plan.activations[view.by_name[name].input[0]]
        values = view.constant(weight.initializer)
        eight_bits = weight.params.dtype == "i8" and params.dtype in {"u8", "i8"}
        if values is None or not eight_bits or node.op_type == "ConvTranspose":
            continue
        stored = quantize(values, weight.params).astype(np.int32)
        groups = int(attribute(node, "group", 1))
        if node.op_type == "Conv" and not (stored.shape[1] == 1 and groups > 1):
            last = np.moveaxis(stored, 1, -1).reshape(len(stored), -1)
            matrices = [part.T for part in np.split(last, groups)]
            yield _Layer(node=node, matrices=matrices, kernel=stored.shape[2:], params=params)
        elif node.op_type != "Conv" and stored.ndim == 2:
            matrices = [stored.T if attribute(node, "transB", 0) else stored]
            yield _Layer(node=node, matrices=matrices, kernel=(), params=params)


def bound(matrices: list[Ints]) -> int:
    """Sums that some bytes could push beyond 16 bits, by the weights alone."""
    return sum(int(_beyond(matrix, np.full(len(matrix), _BYTE_MAX)).sum()) for matrix in matrices)


def _pairs(matrix: Ints) -> Ints:
    """`[K, N]` to `[K / 2, 2, N]`, an odd row filled up with zeros as the kernel does."""
    even = np.pad(matrix, ((0, len(matrix) % 2), (0, 0)))
    return even.reshape(-1, 2, matrix.shape[1])


def _beyond(matrix: Ints, largest: NDArray[np.integer], part: float = 1.0) -> NDArray[np.bool_]:
    """`[K / 2, N]`: whether inputs of `[0, largest]` can push a pair's sum beyond that part of 16 bits."""
    pairs = _pairs(matrix)
    top = _pairs(largest.astype(np.int32)[:, None])
    up = (np.maximum(pairs, 0) * top).sum(axis=1)
    down = (np.minimum(pairs, 0) * top).sum(axis=1)
    return np.asarray((up > part * _HIGH) | (down < part * _LOW))


def count_saturated(rows: Ints, matrix: Ints, sums_max: int) -> tuple[int, NDArray[np.bool_]]:
    """How many pair sums of `rows @ matrix` leave 16 bits, and whether each output comes near it, `[N]`.

    Args:
        rows: inputs as unsigned bytes `[P, K]`.
        matrix: weights as signed bytes `[K, N]`.
        sums_max: of exact sums; beyond, fewer rows (an even spread) are looked at.
    """
    near = np.zeros(matrix.shape[1], dtype=bool)
    at, channel = np.nonzero(_beyond(matrix, rows.max(axis=0, initial=0), _RISK))
    if not at.size or not len(rows):
        return 0, near
    picked = rows[:: -(-at.size * len(rows) // max(sums_max, 1))]
    pairs = _pairs(matrix)[at, :, channel]
    inputs = _pairs(picked.T)
    found = 0
    for row in range(len(picked)):
        sums = (inputs[at, :, row] * pairs).sum(axis=1)
        found += int(((sums > _HIGH) | (sums < _LOW)).sum())
        near[channel[(sums > _RISK * _HIGH) | (sums < _RISK * _LOW)]] = True
    return found, near


def _rows(layer: _Layer, values: Floats, most: int) -> list[Ints]:
    """Inputs of each group's matrix as unsigned bytes at `most` positions, `[P, K]`."""
    node, low = layer.node, int(np.iinfo(DTYPES[layer.params.dtype]).min)
    stored = quantize(values, layer.params).astype(np.int32) - low
    if node.op_type != "Conv":
        moved = np.swapaxes(stored, -1, -2) if attribute(node, "transA", 0) else stored
        flat = moved.reshape(-1, moved.shape[-1])
        return [flat[_spread(len(flat), most)]]
    windows = _windows(layer, stored, int(layer.params.zero_point) - low)
    places = windows.shape[1 : 1 + len(layer.kernel)]
    at = np.unravel_index(_spread(prod(places), most), places)
    # [channels, positions..., kernel...] to [positions, kernel, channels], then group by group.
    whole: tuple[Any, ...] = (slice(None), *at)
    picked = np.moveaxis(windows[whole], 0, -1)
    return [part.reshape(len(part), -1) for part in np.split(picked, len(layer.matrices), axis=-1)]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` indices, evenly spread."""
    few = min(count, most)
    return np.arange(few) * count // max(few, 1)


def _windows(layer: _Layer, stored: Ints, zero: int) -> Ints:
    """What each filter position sees: `[channels, positions..., kernel...]`, of one sample."""
    values = {a.name: helper.get_attribute_value(a) for a in layer.node.attribute}
    spatial, kernel = len(layer.kernel), layer.kernel
    strides = list(values.get("strides", [1] * spatial))
    dilations = list(values.get("dilations", [1] * spatial))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(values, list(stored.shape[2:]), strides, reach)
    padded = np.pad(stored[0], [(0, 0), *pads], constant_values=zero)
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, spatial + 1)))
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True), 1):
        at = [slice(None)] * views.ndim
        at[axis], at[axis + spatial] = slice(None, None, stride), slice(None, None, dilation)
        views = views[tuple(at)]
    return np.asarray(views)


def _pads(
    values: Mapping[str, object], size: list[int], strides: list[int], reach: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, as `pads` or `auto_pad` say."""
    mode = values.get("auto_pad", b"NOTSET")
    given = values.get("pads")
    if isinstance(given, list) and given:
        return [(given[i], given[i + len(size)]) for i in range(len(size))]
    if mode not in {b"SAME_UPPER", b"SAME_LOWER"}:
        return [(0, 0)] * len(size)
    found = []
    for length, stride, wide in zip(size, strides, reach, strict=True):
        total = max((-(-length // stride) - 1) * stride + wide - length, 0)
        small = total // 2
        found.append((small, total - small) if mode == b"SAME_UPPER" else (total - small, small))
    return found


def _watching(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The graph with these tensors as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    float32 = onnx.TensorProto.FLOAT
    copy.graph.output.extend(helper.make_tensor_value_info(name, float32, None) for name in tensors)
    return copy
