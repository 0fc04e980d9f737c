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
from converter.targets.loader import Rules


class Material(Struct, frozen=True, kw_only=True):
    """One conversion's.

    Attributes:
        model: cleaned FP32 graph; no scheme changes it.
        calibration: statistics of its activations.
        samples: the calibration set itself.
        signature: of the model.
        rules: of the target.
    """

    model: onnx.ModelProto
    calibration: Calibration
    samples: Samples
    signature: Signature
    rules: Rules


class Made(Struct, frozen=True, kw_only=True):
    """A candidate's graph.

    Attributes:
        model: the graph.
        decisions: what was decided on the way, in words for people.
        saturating: layers whose 16-bit sums saturate on x86 without VNNI, in words; None where that was not
            emulated (`converter.quantize.saturation`).
    """

    model: onnx.ModelProto
    decisions: tuple[str, ...] = ()
    saturating: tuple[str, ...] | None = None
