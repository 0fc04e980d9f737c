"""What an operator's module offers to the writer.

For: `Entry`: the function that lowers an ONNX operator, with what reading must know of it.
Not for: the table of all (`converter.tflite.ops`).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from converter.tflite.lowering import Lowering
from converter.tflite.reading import Op, Traits

Lower = Callable[[Lowering, Op], None]


class Entry(Struct, frozen=True, kw_only=True):
    """One ONNX operator.

    Attributes:
        lower: writes it; raises TFLiteError with the node's name where that cannot be done.
        traits: of the operator.
    """

    lower: Lower
    traits: Traits = Traits()
