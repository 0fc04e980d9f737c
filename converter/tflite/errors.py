"""Why a graph cannot be written as TFLite: the named classes of failure.

For: `TFLiteError`, whose code is the class and whose text names the node. It is a `RecipeError`, so a twin
that cannot be written is a row with its reason.
Not for: what onnx or the flatbuffer library raise by themselves.

Codes: `tflite_operator` (no such operator here), `tflite_attribute` (an operator's setting that TFLite has
not), `tflite_shape` (a shape that is not fixed), `tflite_rank` (more or fewer axes than the kernel takes),
`tflite_layout` (axes that cannot be put in order), `tflite_type` (an element type that TFLite has not),
`tflite_quantization` (scales or zero points against the rules of its INT8 kernels), `tflite_size` (more bytes
than a flatbuffer holds), `tflite_file` (a file that is not sound: `converter.tflite.verify`).
"""

from __future__ import annotations

from converter.errors import RecipeError


class TFLiteError(RecipeError):
    """This graph cannot be written as TFLite; `code` is the class of failure."""
