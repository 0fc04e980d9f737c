"""ONNX's own cases for single operators: every one is written and right, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from converter.tflite import TFLiteError, write
from converter.tflite.ops import (
    activations,
    arithmetic,
    bounds,
    elementwise,
    gelu,
    hard_sigmoid,
    linear,
    logic,
    normalization,
    recurrent,
    reduce,
    softmax,
)
from tests.converter.tflite.harness import Session

_MODULES = (
    activations, arithmetic, bounds, elementwise, gelu, hard_sigmoid, linear, logic, normalization, recurrent,
    reduce, softmax,
)  # fmt: skip
_KINDS = sorted({kind for module in _MODULES for kind in module.ENTRIES})
Arrays = dict[str, NDArray[Any]]


@cache
def _cases() -> dict[str, list[tuple[onnx.ModelProto, Arrays, list[NDArray[Any]]]]]:
    """By operator: graphs of that one node, their inputs and what ONNX says they give."""
    found: dict[str, list[tuple[onnx.ModelProto, Arrays, list[NDArray[Any]]]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases("")
    for case in cases:
        model = case.model
        if model is None or len(model.graph.node) != 1 or model.graph.node[0].op_type not in _KINDS:
            continue
        given, wanted = case.data_sets[0]
        if any(not isinstance(one, np.ndarray | np.generic) for one in given):
            continue
        names = [value.name for value in model.graph.input]
        feeds = {name: np.asarray(one) for name, one in zip(names, given, strict=True)}
        kind = model.graph.node[0].op_type
        found.setdefault(kind, []).append((model, feeds, [np.asarray(one) for one in wanted]))
    return found


def _forms(model: onnx.ModelProto, feeds: Arrays) -> Iterator[tuple[onnx.ModelProto, Arrays]]:
    """As it is; and with the data alone computed, all other inputs constant."""
    yield model, feeds
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(made.ir_version, 4)
    data = made.graph.input[1 if made.graph.node[0].op_type == "Where" and len(feeds) > 1 else 0].name
    others = [value for value in made.graph.input if value.name != data]
    for value in others:
        made.graph.initializer.append(numpy_helper.from_array(feeds[value.name], value.name))
        made.graph.input.remove(value)
    if others:
        yield made, {data: feeds[data]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", _KINDS)
def test_is_right_or_refused(kind: str) -> None:
    right = 0
    for model, feeds, wanted in _cases().get(kind, []):
        for made, given in _forms(model, feeds):
            try:
                written = write(made)
            except TFLiteError:
                continue
            got = Session(written).run(given)
            for output, expected in zip(made.graph.output, wanted, strict=True):
                mine = got[output.name]
                assert mine.shape == expected.shape
                np.testing.assert_allclose(mine, expected, atol=2e-5, rtol=1e-4, err_msg=str(made.graph.node))
            right += 1
    assert right > 0
