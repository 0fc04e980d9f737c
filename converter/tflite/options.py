"""How a TFLite file is written.

For: `Options`.
Not for: what a target needs; that is its profile's.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Edge = Literal["float32", "int8", "uint8"]
Weights = Literal["as_is", "float16", "dynamic_int8"]


class Options(Struct, frozen=True, kw_only=True):
    """Of one file.

    Attributes:
        edge: type of the inputs and outputs of a quantized graph; float ones have QUANTIZE and DEQUANTIZE.
        batch: length of free first axes.
        weights: how float weights are stored: as float32; as float16, made float32 when the file is loaded;
            or as int8 with a scale per channel, multiplied by inputs that are quantized while it runs.
        name: of the model.
        description: of the model, for people.
        metadata: further entries by name.
    """

    edge: Edge = "float32"
    batch: int = 1
    weights: Weights = "as_is"
    name: str = ""
    description: str = ""
    metadata: dict[str, bytes] = {}
