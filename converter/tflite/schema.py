"""The one door to the TFLite schema's classes.

For: the object API that flatc generated of schema.fbs, as it ships in `ai_edge_litert` (importing it loads
numpy and flatbuffers, and no runtime), and the names of enumerations.
Not for: running models (`converter.litert`).
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as _generated

schema: Any = _generated
"""The generated module; the wheel carries no types."""

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3

TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8, "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64, "bool": schema.TensorType.BOOL,
}  # fmt: skip
"""TFLite's number of an element type, by numpy's name."""

ACTIVATIONS: dict[str, int] = {
    "NONE": schema.ActivationFunctionType.NONE,
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU_N1_TO_1": schema.ActivationFunctionType.RELU_N1_TO_1,
    "RELU6": schema.ActivationFunctionType.RELU6,
}
"""Fused activations by name."""


def operator_code(kind: str) -> int:
    """The schema's number of an operator, such as `CONV_2D`."""
    return int(getattr(schema.BuiltinOperator, kind))


def operator_name(code: int) -> str:
    """The schema's name of an operator; `operator N` where it has none."""
    return _OPERATOR_NAMES.get(code, f"operator {code}")


_OPERATOR_NAMES: dict[int, str] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}


def options_type(options: object) -> int:
    """The union's tag of an options object, such as `Conv2DOptionsT()`."""
    return int(getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")))
