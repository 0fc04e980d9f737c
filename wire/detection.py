"""PURE. A detector's outputs as boxes: decoded, thinned and matched.

For: one reading of boxes on the host and on a device.
Not for: the mean average precision (the converter's evaluate).

As in `wire.agreement`, arrays are numpy's, but numpy is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from wire.errors import ContentError
from wire.tasks import Boxes

_IOU_MATCH = 0.5
_NMS_CANDIDATES_MAX = 1000
"""Best boxes of one sample that suppression looks at; it compares each with each."""


class Detections(Struct, frozen=True):
    """Of one sample, best score first: float64 `[k,4]` corners (x0, y0, x1, y1), `[k]`, int64 `[k]`."""

    boxes: Any
    scores: Any
    classes: Any

    def best(self, score_min: float) -> Detections:
        """Those from this score up."""
        return self.taken(self.scores >= score_min)

    def taken(self, which: Any) -> Detections:  # noqa: ANN401
        """Those at an index or mask."""
        return Detections(self.boxes[which], self.scores[which], self.classes[which])


def detections(spec: Boxes, outputs: Mapping[str, Any]) -> Iterator[Detections]:
    """The boxes of each sample, decoded as the specification says.

    Raises:
        ContentError: `answer_missing` or `answer_shape`: the outputs are not as described.
    """
    if spec.layout == "tensors":
        places, scores, classes = _tensors(spec, outputs)
    else:
        places, scores, classes = _one_tensor(spec, outputs)
    for i in range(len(places)):
        yield _sample(spec, places[i], scores[i], None if classes is None else classes[i])


def _tensors(spec: Boxes, outputs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    places, scores = (_output(outputs, name, what) for name, what in _named(spec, ("boxes", "scores")))
    classes = None if spec.classes is None else _output(outputs, spec.classes, "classes")
    ranks = (3, 3 if classes is None else 2)
    if places.ndim != ranks[0] or places.shape[2] != 4 or scores.shape[:2] != places.shape[:2]:
        raise _shape(
            f"boxes {list(places.shape)} and scores {list(scores.shape)}", "[n,k,4] and [n,k] belong"
        )
    if scores.ndim != ranks[1] or (classes is not None and classes.shape != scores.shape):
        raise _shape(
            f"scores {list(scores.shape)}", "[n,k] with classes [n,k], or [n,k,C] without, is needed"
        )
    return places, scores, classes


def _one_tensor(spec: Boxes, outputs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    tensor = _output(outputs, spec.boxes or next(iter(outputs)), "boxes")
    if tensor.ndim != 3:
        raise _shape(f"boxes {list(tensor.shape)}", "[n,k,4+C] or [n,4+C,k] is needed")
    rows = tensor if spec.layout == "rows" else tensor.transpose(0, 2, 1)
    first = 5 if spec.objectness else 4
    if rows.shape[2] <= first:
        raise _shape(f"a box of {rows.shape[2]} numbers", f"more than {first} are needed; see layout")
    scores = rows[:, :, first:]
    return rows[:, :, :4], scores * rows[:, :, 4:5] if spec.objectness else scores, None


def _named(spec: Boxes, fields: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for field in fields:
        name = getattr(spec, field)
        if name is None:
            raise ContentError("answer_missing", f"the task does not say which output holds the {field}")
        yield name, field


def _output(outputs: Mapping[str, Any], name: str, what: str) -> Any:  # noqa: ANN401
    if name not in outputs:
        raise ContentError("answer_missing", f"no output {name} for {what}; there are {', '.join(outputs)}")
    return outputs[name]


def _shape(have: str, need: str) -> ContentError:
    return ContentError("answer_shape", f"the detector gives {have}; {need}")


def _sample(spec: Boxes, places: Any, scores: Any, classes: Any) -> Detections:  # noqa: ANN401
    if classes is None:
        classes, scores = scores.argmax(axis=-1), scores.max(axis=-1)
    keep = scores >= spec.score_min  # NaN is below everything
    found = Detections(
        corners(spec, places[keep].astype("float64")) * spec.scale,
        scores[keep].astype("float64"),
        classes[keep].astype("int64"),
    )
    # Stable, so that of equal scores the first box stays first on every machine.
    found = found.taken((-found.scores).argsort(kind="stable"))
    if spec.nms:
        found = suppressed(found.taken(slice(_NMS_CANDIDATES_MAX)), spec.nms_iou)
    return found.taken(slice(spec.boxes_max))


def corners(spec: Boxes, places: Any) -> Any:  # noqa: ANN401
    """Places `[k,4]` as x0, y0, x1, y1."""
    result = places.copy()
    if spec.corners == "cxcywh":
        result[:, :2] = places[:, :2] - places[:, 2:] / 2
        result[:, 2:] = places[:, :2] + places[:, 2:] / 2
    elif spec.corners == "xywh":
        result[:, 2:] = places[:, :2] + places[:, 2:]
    elif spec.corners == "yxyx":
        result = places[:, [1, 0, 3, 2]]
    return result


def iou(a: Any, b: Any) -> Any:  # noqa: ANN401
    """Intersection over union of corners `[k,4]` with corners `[m,4]`: `[k,m]`, 0 where both are empty."""
    low = a[:, None, :2].clip(min=b[None, :, :2])
    high = a[:, None, 2:].clip(max=b[None, :, 2:])
    inner = (high - low).clip(min=0.0).prod(axis=2)
    areas = [(part[:, 2:] - part[:, :2]).clip(min=0.0).prod(axis=1) for part in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - inner
    return inner / union.clip(min=1e-12)


def suppressed(found: Detections, iou_max: float) -> Detections:
    """Greedy non-maximum suppression within each class; `found` is sorted by score."""
    overlap = iou(found.boxes, found.boxes) > iou_max
    clash = overlap & (found.classes[:, None] == found.classes[None, :])
    kept: list[int] = []
    alive = found.scores >= 0.0
    for i in range(len(found.scores)):
        if alive[i]:
            kept.append(i)
            alive &= ~clash[i]
    return found.taken(kept)


def matched(mine: Detections, theirs: Detections, iou_min: float = _IOU_MATCH) -> float:
    """Share of boxes, of both sides together, that pair up in one class; 1 where there are none.

    Greedy, the largest overlap first.
    """
    total = len(mine.scores) + len(theirs.scores)
    if total == 0:
        return 1.0
    if len(mine.scores) == 0 or len(theirs.scores) == 0:
        return 0.0
    overlap = iou(mine.boxes, theirs.boxes) * (mine.classes[:, None] == theirs.classes[None, :])
    pairs = 0
    while True:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        if overlap[row, column] < iou_min:
            return 2 * pairs / total
        pairs += 1
        overlap[row] = 0.0
        overlap[:, column] = 0.0
