"""The right answers that stand in a validation set beside the samples.

For: which arrays each task wants, their types and shapes, and whether they fit the model's answers.
Not for: reading files (`converter.dataset`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from converter.errors import InputError
from wire.tasks import Kind

Array = NDArray[Any]

LABELS = "labels"


class Others(Struct, frozen=True, kw_only=True):
    """Arrays of a set that are no inputs.

    Attributes:
        needed: must be there.
        known: may be there; None: whatever is there.
        read: whether they are read at all.
    """

    needed: frozenset[str] = frozenset()
    known: frozenset[str] | None = frozenset()
    read: bool = True


UNREAD = Others(known=frozenset({LABELS, "boxes", "classes"}), read=False)
"""Of a calibration set: it may hold labels, and nothing looks at them."""

_TRUTH: dict[str, Others] = {
    "classification": Others(needed=frozenset({LABELS})),
    "regression": Others(needed=frozenset({LABELS})),
    "embedding": Others(known=frozenset({LABELS})),
    "detection": Others(needed=frozenset({"boxes", "classes"})),
    "custom": Others(known=None),
}


def truth_names(kind: Kind) -> Others:
    """The arrays of right answers that a task wants."""
    return _TRUTH[kind]


def checked_truth(path: Path, kind: Kind, truth: dict[str, Array], n: int) -> dict[str, Array]:
    """The right answers in the types that the task computes with: classes int64, numbers as they are.

    Raises:
        InputError: `labels_type`, `labels_count`.
    """
    found = {name: _checked(path, kind, name, array) for name, array in truth.items()}
    for name, array in found.items():
        if len(array) != n:
            raise InputError("labels_count", f"{path}: {len(array)} {name} for {n} samples")
    if kind == "detection" and found["boxes"].shape != (*found["classes"].shape, 4):
        raise InputError(
            "labels_type",
            f"{path}: boxes are {list(found['boxes'].shape)} and classes {list(found['classes'].shape)}; "
            "needed are [N,M,4] and [N,M], with class -1 where a sample has fewer boxes",
        )
    return found


def _checked(path: Path, kind: Kind, name: str, array: Array) -> Array:
    """One array of right answers."""
    said = f"{path}: {name} are {array.dtype} {list(array.shape)}"
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise InputError("labels_type", f"{said}; needed are numbers, first axis samples")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("labels_type", f"{said} with NaN or infinity; remove such samples")
    if kind in {"regression", "custom"} or name == "boxes":
        return array
    ranks = {"classification": (1, 2), "embedding": (1,), "detection": (2,)}[kind]
    if array.dtype.kind not in "biu" or array.ndim not in ranks:
        want = {
            "classification": "one integer a sample, or [N,K] with -1 behind the acceptable classes",
            "embedding": "one integer a sample",
            "detection": "[N,M] integers, -1 where a sample has fewer boxes",
        }[kind]
        raise InputError("labels_type", f"{said}; needed is {want}")
    return array.astype(np.int64)
