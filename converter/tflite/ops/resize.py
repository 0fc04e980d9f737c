"""Resizing images: RESIZE_NEAREST_NEIGHBOR, RESIZE_BILINEAR, or GATHER.

For: Resize and Upsample, nearest over any axes and linear over one or two spatial ones.
Not for: cubic, antialiased or cropping resizes, which TFLite has not.

ONNX names a rule from places of the output to places of the input, and TFLite has three: plain (x * in /
out), `half_pixel_centers` and `align_corners` (tensorflow/lite/kernels/internal/reference/
resize_nearest_neighbor.h and resize_bilinear.h). No table says which is which: both are worked out for the
very sizes, and TFLite's operator is written where every place is the same. A nearest resize that none of
them says is a GATHER along each axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.tflite.errors import TFLiteError
from converter.tflite.lowering import Lowering
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.picking import pick
from converter.tflite.ops.windows import image, image_output, settle
from converter.tflite.reading import Op, Traits
from converter.tflite.schema import schema

Places = NDArray[np.float64]
Indices = NDArray[np.int64]
_CLOSE = 1e-5
"""How far apart two places between the same two neighbours may be, of the axis' length."""


_NEWER = 3
"""Version of what is not the plain rule (op_version.cc)."""


class Rule(Struct, frozen=True, kw_only=True):
    """One of TFLite's rules."""

    align_corners: bool
    half_pixel_centers: bool


RULES = (
    Rule(align_corners=False, half_pixel_centers=False),
    Rule(align_corners=False, half_pixel_centers=True),
    Rule(align_corners=True, half_pixel_centers=False),
)


class Axis(Struct, frozen=True, kw_only=True):
    """One axis that is resized.

    Attributes:
        before: length of the input.
        after: length of the output.
        scale: ONNX's, output over input.
    """

    before: int
    after: int
    scale: float


def places_of(axis: Axis, mode: str) -> Places:
    """Where ONNX's coordinate transformation looks for each place of the output, float64.

    Args:
        axis: lengths and scale.
        mode: `coordinate_transformation_mode`, other than tf_crop_and_resize.
    """
    x = np.arange(axis.after, dtype=np.float64)
    length = axis.scale * axis.before
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "align_corners":
        return x * 0 if length == 1 else x * (axis.before - 1) / (length - 1)
    if mode == "pytorch_half_pixel" and length == 1:
        return x * 0 - 0.5
    half = (x + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        half += axis.before / 2 * (1 - axis.after / length)
    return half


_ROUNDS: dict[str, Callable[[Places], Places]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def nearest_of(axis: Axis, mode: str, rounding: str) -> Indices:
    """The places of the input that ONNX's nearest mode picks."""
    found = _ROUNDS[rounding](places_of(axis, mode))
    return np.clip(found, 0, axis.before - 1).astype(np.int64)


def tflite_places(axis: Axis, rule: Rule, *, nearest: bool) -> NDArray[np.float32]:
    """Where a rule looks, in float32 as the kernels compute it; for nearest, before rounding."""
    x = np.arange(axis.after, dtype=np.float32)
    corners = rule.align_corners and axis.after > 1
    ratio = (axis.before - 1, axis.after - 1) if corners else (axis.before, axis.after)
    scale = np.float32(ratio[0]) / np.float32(ratio[1])
    if not rule.half_pixel_centers:
        return x * scale
    return np.asarray((x + np.float32(0.5)) * scale - np.float32(0 if nearest else 0.5), dtype=np.float32)


def tflite_nearest(axis: Axis, rule: Rule) -> Indices:
    """The places of the input that RESIZE_NEAREST_NEIGHBOR picks."""
    places = tflite_places(axis, rule, nearest=True)
    whole = np.floor(places + np.float32(0.5)) if rule.align_corners else np.floor(places)
    return np.clip(whole, 0, axis.before - 1).astype(np.int64)


def resize(b: Lowering, op: Op) -> None:
    """Writes one Resize or Upsample."""
    axes = _axes(b, op)
    mode = op.attributes.get("mode", "nearest")
    where = _coordinates(b, op)
    if mode == "nearest":
        rounding = op.attributes.get("nearest_mode", "round_prefer_floor")
        if where == "asymmetric" and _is_old(b, op):
            rounding = "floor"
            if any(axis.after < axis.before for axis in axes):
                raise TFLiteError(
                    "tflite_attribute", f"{op.where} shrinks in opset {b.source.opset}, which leaves open how"
                )
        _nearest(b, op, axes, [nearest_of(axis, where, rounding) for axis in axes])
    elif mode in {"linear", "bilinear"}:
        _linear(b, op, axes, [places_of(axis, where) for axis in axes])
    else:
        raise TFLiteError("tflite_attribute", f"{op.where} has mode {mode}, TFLite nearest and linear")


def _is_old(b: Lowering, op: Op) -> bool:
    return op.op_type == "Upsample" or b.source.opset < 11


def _coordinates(b: Lowering, op: Op) -> str:
    mode = (
        "asymmetric" if _is_old(b, op) else op.attributes.get("coordinate_transformation_mode", "half_pixel")
    )
    refused = {
        "coordinate_transformation_mode": mode == "tf_crop_and_resize",
        "antialias": bool(op.attributes.get("antialias", 0)),
        "exclude_outside": bool(op.attributes.get("exclude_outside", 0)),
        "keep_aspect_ratio_policy": op.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch",
    }
    for name in (name for name, found in refused.items() if found):
        raise TFLiteError("tflite_attribute", f"{op.where} has {name} {op.attributes[name]}, TFLite not")
    return str(mode)


def _axes(b: Lowering, op: Op) -> list[Axis]:
    """Every axis with its scale: the one given, or lengths' ratio where lengths are."""
    before, after = b.shape(op.inputs[0]), b.shape(op.outputs[0])
    rank = len(before)
    place = 1 if _is_old(b, op) else 2
    given = op.attributes.get("scales")
    if given is None:
        given = b.numbers(op, place, np.zeros(0, np.float32)).reshape(-1)
    scales = [new / old for new, old in zip(after, before, strict=True)]
    if len(given):
        for i, scale in zip(op.attributes.get("axes", range(rank)), given, strict=True):
            scales[i % rank] = float(scale)
    triples = zip(before, after, scales, strict=True)
    return [Axis(before=old, after=new, scale=scale) for old, new, scale in triples]


def _nearest(b: Lowering, op: Op, axes: list[Axis], wanted: list[Indices]) -> None:
    spatial = len(axes) in {3, 4} and all(axis.before == axis.after for axis in axes[:2])
    if spatial:
        for rule in RULES:
            pairs = zip(axes, wanted, strict=True)
            if all(np.array_equal(tflite_nearest(axis, rule), places) for axis, places in pairs):
                _write(b, op, rule, "RESIZE_NEAREST_NEIGHBOR")
                return
    value = b.value(op.inputs[0])
    made = b.output(op, value.axes, like=value.tensor)
    changed = [i for i, p in enumerate(wanted) if not np.array_equal(p, np.arange(axes[i].before))]
    tensor = value.tensor
    for i in changed or [0]:
        last = made if i == (changed or [0])[-1] else None
        tensor = pick(b, tensor, value.axes.index(i), wanted[i].tolist(), f"{made.name}_axis{i}", last)


def _linear(b: Lowering, op: Op, axes: list[Axis], wanted: list[Places]) -> None:
    if len(axes) not in {3, 4} or any(axis.before != axis.after for axis in axes[:2]):
        raise TFLiteError("tflite_rank", f"{op.where} is linear over other axes than one or two spatial ones")
    for rule in RULES:
        if all(_alike(axis, rule, places) for axis, places in zip(axes[2:], wanted[2:], strict=True)):
            _write(b, op, rule, "RESIZE_BILINEAR")
            return
    mode = op.attributes.get("coordinate_transformation_mode", "half_pixel")
    raise TFLiteError(
        "tflite_attribute", f"{op.where} is linear by {mode} with scales that none of TFLite's rules gives"
    )


def _alike(axis: Axis, rule: Rule, wanted: Places) -> bool:
    """Whether a rule looks at the same places; beyond the edges, the edge counts."""
    found = tflite_places(axis, rule, nearest=False).astype(np.float64)
    last = axis.before - 1
    return bool(np.abs(np.clip(found, 0, last) - np.clip(wanted, 0, last)).max() <= _CLOSE * axis.before)


def _write(b: Lowering, op: Op, rule: Rule, kind: str) -> None:
    tensor = image(b, op.inputs[0])
    made, settled = image_output(b, op, like=tensor)
    options: Any = (
        schema.ResizeBilinearOptionsT() if kind == "RESIZE_BILINEAR" else
        schema.ResizeNearestNeighborOptionsT()
    )  # fmt: skip
    options.alignCorners = rule.align_corners
    options.halfPixelCenters = rule.half_pixel_centers
    sizes = b.integers(made.shape[1:3], f"{op.name}_sizes")
    newer = rule.half_pixel_centers or (rule.align_corners and kind == "RESIZE_NEAREST_NEIGHBOR")
    b.add(kind, [tensor, sizes], [made], options, version=_NEWER if newer else None)
    settle(b, made, settled)


ENTRIES = dict.fromkeys(("Resize", "Upsample"), Entry(lower=resize, traits=Traits(integer=True)))
