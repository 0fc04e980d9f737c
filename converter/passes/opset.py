"""Brings the default operator set between a target's bounds.

Requires: a valid model. Ensures: `minimum <= opset <= maximum` of the default domain, and an IR version
that a runtime of that opset reads; per-channel QDQ below opset 13 is an invalid graph (FACTS.md trap 2).
Not for: other domains' versions.
"""

from __future__ import annotations

import onnx
from onnx import version_converter

from converter.errors import InputError

_IR_VERSION_OF_OPSET_21 = 10


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default domain; 1 where the model names none, as ONNX has it."""
    return next((int(o.version) for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)


def convert_opset(model: onnx.ModelProto, minimum: int, maximum: int) -> tuple[onnx.ModelProto, str | None]:
    """The model within the bounds, and in words what was done, None if nothing.

    Raises:
        InputError: `model_opset`: the model cannot be converted.
    """
    here = opset_of(model)
    wanted = min(max(here, minimum), maximum)
    if wanted == here:
        return _capped_ir(model), None
    try:
        converted = version_converter.convert_version(model, wanted)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            "model_opset",
            f"the model has opset {here}, the target needs {minimum} to {maximum}, and converting it "
            f"failed ({first[:200]}); export it again with opset {wanted}",
        ) from error
    return _capped_ir(converted), f"opset converted from {here} to {wanted}"


def _capped_ir(model: onnx.ModelProto) -> onnx.ModelProto:
    model.ir_version = min(model.ir_version, _IR_VERSION_OF_OPSET_21)
    return model
