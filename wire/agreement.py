"""PURE. Whether two models give the same answers, by task.

For: one measure of agreement, whether the host compares a candidate with FP32 or a device's worker does.
Not for: accuracy, or intervals (`wire.figures`).

The arrays are the caller's: numpy is not imported here, because the agent's daemon imports `wire` and
must stay light. Only operators, methods and slices of a numpy array are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wire.detection import detections, matched
from wire.errors import ContentError
from wire.tasks import Answer, Kind

NO_CLASS = -1
"""Where no score is a number; it equals no label, so a broken model is right about nothing."""

_TINY = 1e-12
_IOU_SAME = 0.95
_SAME_SIZE = 0.01


def answer_name(answer: Answer, names: tuple[str, ...]) -> str:
    """The output that holds the answer.

    Raises:
        ContentError: `answer_missing`: the named output is none of the model's.
    """
    name = answer.output or names[0]
    if name not in names:
        raise ContentError("answer_missing", f"output {name} is none of the model's: {', '.join(names)}")
    return name


def classes_of(answer: Answer, scores: Any) -> Any:  # noqa: ANN401
    """The class that scores stand for, of each sample, or of each frame; the first of equals.

    Args:
        answer: how to read them.
        scores: `[n]` or `[n,1]` of one class; `[n,C]`; with frames `[n,T]` of one class or `[n,T,C]`.

    Returns:
        int64 `[n]`, with frames `[n,T]`; `NO_CLASS` where no score is a number.

    Raises:
        ContentError: `answer_shape`: any other shape.
    """
    ranks = (2, 3) if answer.frames else (1, 2)
    if scores.ndim not in ranks or 0 in scores.shape or scores.dtype.kind not in "fiub":
        want = "[n,T] or [n,T,C]" if answer.frames else "[n] or [n,C]"
        raise ContentError(
            "answer_shape", f"class scores are {want}; these are {scores.dtype}{list(scores.shape)}"
        )
    if scores.ndim == ranks[0] or scores.shape[-1] == 1:
        flat = scores.reshape(scores.shape[: ranks[0]]).astype("float64")
        return _unknown_marked((flat >= answer.threshold).astype("int64"), _not_a_number(flat))
    wide = scores.astype("float64")
    unknown = _not_a_number(wide)
    wide[unknown] = -float("inf")
    best = wide.argmax(axis=-1)
    # Where only NaN and -inf are left, argmax may have met a former NaN first.
    only = unknown & (wide == wide.max(axis=-1, keepdims=True))
    fallen = only.any(axis=-1)
    best[fallen] = unknown.argmin(axis=-1)[fallen]
    return _unknown_marked(best.astype("int64"), unknown.all(axis=-1))


def _not_a_number(array: Any) -> Any:  # noqa: ANN401
    return ~(array <= float("inf"))


def _unknown_marked(classes: Any, unknown: Any) -> Any:  # noqa: ANN401
    classes[unknown] = NO_CLASS
    return classes


def agreement(kind: Kind, answer: Answer, outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """How far each sample's answer agrees with the reference's.

    Classification: same class (of the share of frames); regression: the share of numbers within
    `tolerance` of the reference's size, measured as the sample's root mean square; embedding: cosine;
    detection: the share of boxes matched at IoU .5 in the same class, over both sides (a Dice coefficient);
    custom: as regression, over all floating outputs.

    Args:
        kind: task.
        answer: how outputs are read.
        outputs: by name in the manifest's order, first axis samples.
        reference: the same outputs of the reference.

    Returns:
        float64 `[n]`, 1 is full agreement.

    Raises:
        ContentError: `answer_missing`, `answer_shape`.
    """
    names = tuple(reference)
    if kind == "detection":
        mine, theirs = (detections(answer.boxes, found) for found in (outputs, reference))
        best = answer.score_agree_min
        return _listed(
            reference, [matched(a.best(best), b.best(best)) for a, b in zip(mine, theirs, strict=True)]
        )
    if kind == "custom":
        floats = [name for name in names if reference[name].dtype.kind == "f"] or list(names)
        parts = [_within(outputs[name], reference[name], answer.tolerance) for name in floats]
        return sum(parts[1:], start=parts[0]) / len(parts)
    name = answer_name(answer, names)
    if kind == "classification":
        same = classes_of(answer, outputs[name]) == classes_of(answer, reference[name])
        return same.reshape(len(same), -1).mean(axis=1)
    if kind == "embedding":
        return _cosine(outputs[name], reference[name])
    return _within(outputs[name], reference[name], answer.tolerance)


def same_answers(kind: Kind, answer: Answer, outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Which samples have the same answer for all purposes, so that the accuracy is the same: bool `[n]`.

    Classification: the same class; detection: all boxes pair up at IoU .95; any other: the floating
    outputs lie within one hundredth of the reference's size (Euclidean, per sample).

    Raises:
        ContentError: `answer_missing`, `answer_shape`.
    """
    if kind == "classification":
        return agreement(kind, answer, outputs, reference) == 1.0
    if kind == "detection":
        mine, theirs = (detections(answer.boxes, found) for found in (outputs, reference))
        least = answer.score_agree_min
        pairs = zip(mine, theirs, strict=True)
        shares = [matched(a.best(least), b.best(least), _IOU_SAME) for a, b in pairs]
        return _listed(reference, shares) == 1.0
    names = [answer_name(answer, tuple(reference))] if kind != "custom" else list(reference)
    parts = [_close(outputs[name], reference[name]) for name in names]
    return sum(part * 1 for part in parts) == len(parts)


def _close(mine: Any, theirs: Any) -> Any:  # noqa: ANN401
    a, b = (part.reshape(len(part), -1).astype("float64") for part in (mine, theirs))
    apart = ((a - b) ** 2).sum(axis=1) ** 0.5
    return apart <= _SAME_SIZE * (b * b).sum(axis=1) ** 0.5 + _TINY


def _within(mine: Any, theirs: Any, tolerance: float) -> Any:  # noqa: ANN401
    a, b = (part.reshape(len(part), -1).astype("float64") for part in (mine, theirs))
    size = (b * b).mean(axis=1, keepdims=True) ** 0.5
    return (abs(a - b) <= tolerance * size + _TINY).mean(axis=1)


def _cosine(mine: Any, theirs: Any) -> Any:  # noqa: ANN401
    """Two vectors of nothing but zeros are the same; NaN agrees with nothing."""
    a, b = (part.reshape(len(part), -1).astype("float64") for part in (mine, theirs))
    norms = ((a * a).sum(axis=1) * (b * b).sum(axis=1)) ** 0.5
    equal = (a == b).all(axis=1)
    value = (a * b).sum(axis=1) / norms.clip(min=_TINY)
    value[_not_a_number(value)] = 0.0
    value[equal] = 1.0
    return value


def _listed(reference: Mapping[str, Any], values: list[float]) -> Any:  # noqa: ANN401
    """The values as an array of the caller's library."""
    array = next(iter(reference.values())).reshape(len(values), -1)[:, 0].astype("float64")
    array[:] = values
    return array
