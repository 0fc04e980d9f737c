"""PURE. What a model is for: how its outputs are read as answers, and what its accuracy is called.

For: the types that the converter writes into a manifest and the device's worker reads its answers by.
Not for: computing an answer (`wire.agreement`) or an accuracy (the converter's evaluate).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from wire.types import Fraction, Name

Kind = Literal["classification", "regression", "embedding", "detection", "custom"]
Direction = Literal["higher", "lower"]


class Metric(Struct, frozen=True, kw_only=True):
    """The task's figure of merit, which stands in every field called accuracy.

    Attributes:
        name: such as `top1`, `mae`, `map` or a custom metric's.
        direction: whether a larger or a smaller value is better.
        per_sample: it is a mean over samples; else it is of the whole set, such as a mAP or an RMSE.
        low: least value that it can have; None without a bound.
        high: largest.
    """

    name: Name
    direction: Direction = "higher"
    per_sample: bool = True
    low: float | None = None
    high: float | None = None


TOP1 = Metric(name="top1", low=0.0, high=1.0)


class Boxes(Struct, frozen=True, kw_only=True):
    """Where a detector's outputs keep boxes, scores and classes.

    Either three tensors, `[N,boxes,4]`, `[N,boxes]` and `[N,boxes]` (or `[N,boxes,C]` scores without
    classes), or one with a row (`rows`) or a column (`columns`) per box: four numbers of place, the
    objectness where there is one, then one score per class.

    Attributes:
        boxes: output with the places; in the one-tensor layouts, with everything.
        scores: output with the scores; tensors only.
        classes: output with the classes; tensors only.
        corners: how the four numbers say the place: two corners, centre and size, corner and size, or two
            corners with y first.
        objectness: a score of its own before the classes', multiplied with each.
        nms: overlapping boxes of one class are still to be suppressed.
        nms_iou: overlap above which the lower score goes.
        score_min: boxes below are nobody's.
        boxes_max: best boxes kept per sample.
        scale: what the numbers of place are multiplied with to be in the ground truth's unit.
    """

    layout: Literal["tensors", "rows", "columns"] = "tensors"
    boxes: Name | None = None
    scores: Name | None = None
    classes: Name | None = None
    corners: Literal["xyxy", "cxcywh", "xywh", "yxyx"] = "xyxy"
    objectness: bool = False
    nms: bool = False
    nms_iou: Fraction = 0.6
    score_min: Fraction = 0.01
    boxes_max: Annotated[int, Meta(ge=1, le=1000)] = 100
    scale: float = 1.0


class Answer(Struct, frozen=True, kw_only=True):
    """How outputs are read and compared; what a task does not use is left alone.

    Attributes:
        output: that holds the answer; None: the first.
        frames: classification of every frame of a sample: `[N,T]` scores of one class, or `[N,T,C]`.
        threshold: where there is one score, from here up it is class 1.
        tolerance: regression agrees within this part of the reference's size.
        score_agree_min: detection compares the boxes from this score up.
        boxes: detection only.
    """

    output: Name | None = None
    frames: bool = False
    threshold: float = 0.5
    tolerance: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.05
    score_agree_min: Fraction = 0.25
    boxes: Boxes = Boxes()
