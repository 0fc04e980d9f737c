"""What a candidate is made of, and what is made.

For: the two types that every scheme takes and gives, so that a scheme that needs more than ranges (samples
for GPTQ, statistics for bias correction) asks for nothing new.
Not for: doing anything with them.
"""

from __future__ import annotations

import onnx
from msgspec import Struct

from converter.calibrate import Calibration
from converter.dataset import Samples
from converter.model import Signature
from converter.recipe import Recipe
from converter.repair.goal import Goal
from converter.targets.loader import Rules
from wire.figures import Interval


class Material(Struct, frozen=True, kw_only=True):
    """One conversion's.

    Attributes:
        model: cleaned FP32 graph; no scheme changes it.
        calibration: statistics of its activations.
        samples: the calibration set itself.
        signature: of the model.
        rules: of the target.
        given: the model as it was given, where it carries Q/DQ pairs; `model` is then its float twin.
        goal: what a search for islands must reach; None where the SLA limits no accuracy.
        chosen: ranges that a search has found, by recipe, with the graph that they are of: no part of what a
            material is, but what is known need not be searched again (`converter.quantize.repaired`).
    """

    model: onnx.ModelProto
    calibration: Calibration
    samples: Samples
    signature: Signature
    rules: Rules
    given: onnx.ModelProto | None = None
    goal: Goal | None = None
    chosen: dict[str, tuple[onnx.ModelProto, dict[str, Interval], tuple[str, ...]]] = {}


class Made(Struct, frozen=True, kw_only=True):
    """A candidate's graph.

    Attributes:
        model: the graph.
        decisions: what was decided on the way, in words for people.
        saturating: layers whose 16-bit sums saturate on x86 without VNNI, in words; None where that was not
            emulated (`converter.quantize.saturation`).
        recipe: what was made in the end, where that is decided on the way (the number of islands).
    """

    model: onnx.ModelProto
    decisions: tuple[str, ...] = ()
    saturating: tuple[str, ...] | None = None
    recipe: Recipe | None = None
