"""What the schemes share.

For: numeric types by the grammar's letters, a copy with inferred shapes, a quiet quantizer.
Not for: deciding anything about a recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx

from converter.errors import RecipeError
from converter.passes.strip import strip
from converter.runtime import ort_quantization

_TYPES = {"i8": "QInt8", "u8": "QUInt8", "i16": "QInt16", "u16": "QUInt16"}


def quant_type(name: str) -> Any:  # noqa: ANN401 - an enumeration of an untyped library
    """The runtime's name of a grammar type.

    Raises:
        RecipeError: `recipe_type`: this quantizer has no such type.
    """
    if name not in _TYPES:
        raise RecipeError("recipe_type", f"type {name} cannot be emitted by this scheme")
    return getattr(ort_quantization.QuantType, _TYPES[name])


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with inferred shapes, marked so that the quantizer does not infer them again through files."""
    inferred = onnx.shape_inference.infer_shapes(model)
    onnx.helper.set_model_props(inferred, {"onnx.infer": "onnxruntime.quant"})
    return inferred


def finished(quantizer: Any) -> onnx.ModelProto:  # noqa: ANN401 - untyped library
    """Runs a quantizer and gives its graph without marks and inferred shapes of tensors that are gone."""
    with quiet():
        quantizer.quantize_model()
    model = quantizer.model.model
    strip(model)
    del model.graph.value_info[:]
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's advice off standard error; it would also install a handler on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
