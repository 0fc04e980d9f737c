"""Equalization of channels across layers: `cle`.

For: dividing the channels of a tensor by factors where its writer makes them and multiplying them back in
the weights that read them, so that no channel stretches the range that the others must share. The function
of the graph stays the same up to float rounding (Nagel et al. 2019, arXiv:1906.04721, section 4.1). The
factors weigh activations too, as in SmoothQuant (Xiao et al. 2022, arXiv:2211.10438, equation 4:
s = reach^a / weight^(1-a)): with weights quantized per channel it is the activations that suffer.
Not for: operators that are not positively homogeneous. ReLU6 is left alone: its bound would have to differ by
channel, which no integer kernel fuses.

How factors are chosen: a few for each link (each a of a grid, and the paper's own from the weights of both
sides), the one kept whose predicted noise at the readers' outputs is least. Noise of a quantizer of step d
is d^2/12 (uniform rounding); it passes a reader with the square of its weights. Sweeps over all links
repeat until no factor moves by more than a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import Struct

from converter.dataset import Samples
from converter.limits import EQUALIZE_FACTOR_MAX, EQUALIZE_SWEEPS_MAX
from converter.model import Signature
from converter.recipe import Recipe
from converter.repair.channels import ChannelStatistics, channel_statistics
from converter.repair.graph import Floats, GraphIndex, attribute
from converter.repair.links import Link, Refusal, find_links

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SETTLED = 0.01
_GAIN_MIN = 0.95
"""Of the predicted noise: what saves less than a twentieth is not worth a changed weight."""
_NAMED_MAX = 5


class _Side(Struct, frozen=True, kw_only=True):
    """What a link's noise depends on.

    Attributes:
        read: statistics of the tensor that the readers take, `[channels]`.
        source_power: mean square of what the writer multiplies with its weight; 0 where it has none.
        per_channel: whether each output channel of a weight has its own scale.
    """

    read: ChannelStatistics
    source_power: float
    per_channel: bool


def equalize(
    model: onnx.ModelProto, samples: Samples, signature: Signature, recipe: Recipe
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """An equalized copy, or the model itself where nothing is to be gained; and in words what was done.

    The statistics of the copy's tensors differ from the model's: calibrate it again (histograms of whole
    tensors cannot be scaled by channel).

    Args:
        model: cleaned FP32 graph.
        samples: the calibration set.
        signature: of the model.
        recipe: whether weights have a scale per channel, which decides what is worth equalizing.

    Raises:
        Exception: what the runtime raises on this graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = GraphIndex(copy)
    links, refusals = find_links(index)
    if not links:
        reasons = sorted({one.reason for one in refusals})[:_NAMED_MAX]
        return model, (f"equalized nothing: {'; '.join(reasons) or 'no operator has weights'}",)
    sides = _sides(model, samples, signature, links, recipe)
    factors = {link.tensor: np.ones(link.channels) for link in links}
    for _ in range(EQUALIZE_SWEEPS_MAX):
        moved = max((_improve(index, link, sides, factors) for link in links), default=0.0)
        if moved < _SETTLED:
            break
    moved_any = any((found != 1.0).any() for found in factors.values())
    return (copy if moved_any else model), _words(links, sides, factors, refusals)


def _sides(
    model: onnx.ModelProto, samples: Samples, signature: Signature, links: list[Link], recipe: Recipe
) -> dict[str, _Side]:
    """What is known of each link before anything is scaled."""
    axes: dict[str, int | None] = {}
    for link in links:
        where = dict(zip(link.tensors, link.axes, strict=True))
        axes |= {reader.input[0]: where[reader.input[0]] for reader in link.readers}
        axes.setdefault(link.writer.input[0], None)
    known = channel_statistics(model, samples, signature, axes)
    sides = {}
    for link in links:
        read = [known[name] for name in dict.fromkeys(reader.input[0] for reader in link.readers)]
        weighs = link.writer.op_type != "LayerNormalization"
        power = float(known[link.writer.input[0]].mean_square.mean()) if weighs else 0.0
        sides[link.tensor] = _Side(read=_widest(read), source_power=power, per_channel=recipe.per_channel)
    return sides


def _widest(found: list[ChannelStatistics]) -> ChannelStatistics:
    return ChannelStatistics(
        low=np.min([one.low for one in found], axis=0),
        high=np.max([one.high for one in found], axis=0),
        mean_square=np.max([one.mean_square for one in found], axis=0),
    )


def _improve(index: GraphIndex, link: Link, sides: Mapping[str, _Side], factors: dict[str, Floats]) -> float:
    """Scales one link by the best factors; how far they moved, as the largest |log|."""
    side = sides[link.tensor]
    now = side.read.divided(factors[link.tensor])
    weights = [_by_input(index, reader) for reader in link.readers]
    reach_writer = _reach(index, link)
    reach_readers = np.max([np.abs(w).max(axis=(1, 3)).reshape(-1) for w in weights], axis=0)
    ones = np.ones(link.channels)
    before = noise(now, weights, reach_writer, side, ones)
    best, best_noise = ones, before * _GAIN_MIN
    for candidate in _candidates(now.reach, reach_writer, reach_readers):
        found = noise(now, weights, reach_writer, side, candidate)
        if found < best_noise:
            best, best_noise = candidate, found
    if best is ones:
        return 0.0
    total = np.clip(factors[link.tensor] * best, 1 / EQUALIZE_FACTOR_MAX, EQUALIZE_FACTOR_MAX)
    best = total / factors[link.tensor]
    factors[link.tensor] = total
    scale_link(index, link, best)
    return float(np.abs(np.log(best)).max())


def _candidates(reach: Floats, writer: Floats, readers: Floats) -> list[Floats]:
    """Factors worth a look, each with geometric mean 1; a dead channel keeps 1."""
    alive = (reach > 0) & (readers > 0) & (writer > 0)
    if not alive.any():
        return []
    safe = [np.where(alive, values, 1.0) for values in (reach, writer, readers)]
    raw = [safe[0] ** a / safe[2] ** (1 - a) for a in _EXPONENTS]
    raw.append(np.sqrt(safe[1] / safe[2]))
    found = []
    for values in raw:
        centre = math.exp(float(np.log(values[alive]).mean()))
        found.append(np.where(alive, values / centre, 1.0))
    return found


def noise(
    read: ChannelStatistics, weights: list[Floats], writer: Floats, side: _Side, factors: Floats
) -> float:
    """Predicted noise power at the readers' outputs if the link were scaled by `factors`.

    Args:
        read: statistics of the tensor as it is now.
        weights: of the readers as `_by_input()` gives them.
        writer: largest absolute weight of the writer by channel.
        side: of the link.
        factors: positive, `[channels]`.
    """
    scaled = read.divided(factors)
    span = max(float(scaled.high.max()), 0.0) - min(float(scaled.low.min()), 0.0)
    total = 0.0
    passed = np.zeros(len(factors))
    for weight in weights:
        here = weight * factors.reshape(weight.shape[0], 1, weight.shape[2], 1)
        passed += np.square(here).sum(axis=(1, 3)).reshape(-1)
        largest = np.abs(here).max(axis=(2, 3))
        steps = (largest if side.per_channel else np.full_like(largest, largest.max())) / 127
        energy = scaled.mean_square.reshape(weight.shape[0], weight.shape[2]).sum(axis=1) * weight.shape[3]
        total += float((np.square(steps) / 12 * energy[:, None]).sum())
    total += (span / 255) ** 2 / 12 * float(passed.sum())
    if not side.per_channel:
        step = float((writer / factors).max()) / 127
        total += step**2 / 12 * side.source_power * float(passed.sum())
    return total


def _by_input(index: GraphIndex, reader: onnx.NodeProto) -> Floats:
    """A reader's weight as [groups, outputs, inputs of a group, places of the kernel]."""
    weight = index.constant(reader.input[1])
    if weight is None:
        raise RuntimeError(f"{reader.input[1]} was a constant when the link was found")
    if reader.op_type == "Conv":
        groups = int(attribute(reader, "group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if reader.op_type == "Gemm" and attribute(reader, "transB", 0):
        weight = weight.T
    return np.ascontiguousarray(weight.T)[None, :, :, None]


def _reach(index: GraphIndex, link: Link) -> Floats:
    """Largest absolute weight of the writer by channel."""
    name, axis = link.divided[0]
    weight = index.constant(name)
    if weight is None:
        raise RuntimeError(f"{name} was a constant when the link was found")
    largest: Floats = np.abs(np.moveaxis(weight, axis, 0).reshape(link.channels, -1)).max(axis=1)
    return largest


def scale_link(index: GraphIndex, link: Link, factors: Floats) -> None:
    """Divides the writer's channels and multiplies the readers' inputs by `factors`, `[channels]`."""
    for name, axis in link.divided:
        values = index.constant(name)
        if values is None:
            raise RuntimeError(f"{name} was a constant when the link was found")
        shape = [1] * values.ndim
        shape[axis] = link.channels
        index.replace(name, values / factors.reshape(shape))
    for reader in link.readers:
        weight = index.constant(reader.input[1])
        if weight is None:
            raise RuntimeError(f"{reader.input[1]} was a constant when the link was found")
        if reader.op_type == "Conv":
            groups = int(attribute(reader, "group", 1))
            parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            scaled = (parts * factors.reshape(groups, 1, -1, 1)).reshape(weight.shape)
        elif reader.op_type == "Gemm" and attribute(reader, "transB", 0):
            scaled = weight * factors[None, :]
        else:
            scaled = weight * factors[:, None]
        index.replace(reader.input[1], scaled)


def _words(
    links: list[Link],
    sides: Mapping[str, _Side],
    factors: Mapping[str, Floats],
    refusals: list[Refusal],
) -> tuple[str, ...]:
    """What was done, the largest changes first."""
    spreads = []
    for link in links:
        before = sides[link.tensor].read.reach
        after = before / factors[link.tensor]
        if (factors[link.tensor] != 1.0).any():
            spreads.append((_spread(before), _spread(after), link.tensor))
    spreads.sort(reverse=True)
    again = ", calibrated again" if spreads else ""
    said = [f"equalized {len(spreads)} of {len(links) + len(refusals)} tensors across layers{again}"]
    said += [
        f"{name}: its widest channel reached {before:.3g} times the median one, now {after:.3g} times"
        for before, after, name in spreads[:_NAMED_MAX]
    ]
    if refusals:
        first = refusals[0]
        said.append(f"{len(refusals)} tensors cannot be equalized; {first.tensor}: {first.reason}")
    return tuple(said)


def _spread(reach: Floats) -> float:
    middle = float(np.median(reach[reach > 0])) if (reach > 0).any() else 1.0
    return float(reach.max()) / middle
