"""tflite-runtime is there, so that every operator's test loads its file in it too (`harness.check_older`)."""

from __future__ import annotations

import numpy as np
import pytest

from converter.tflite import write
from tests.converter.quantizing import floats, graph
from tests.converter.tflite.harness import check_older, older


def test_the_older_runtime_is_asked_too(tflite_runtime_python: str) -> None:
    runtime = older()
    assert runtime is not None
    assert runtime.version.startswith("2."), tflite_runtime_python
    written = write(
        graph([("Gemm", "x w", "y")], {"w": floats(1, 6, 4)}, outputs={"y": ["N", 4]}, shape=(6,))
    )
    x = floats(2, 1, 6)
    check_older(written, {"x": x}, {"y": x @ floats(1, 6, 4)}, atol=1e-5)
    with pytest.raises(AssertionError):
        check_older(written, {"x": x}, {"y": np.zeros((1, 4))}, atol=1e-5)
