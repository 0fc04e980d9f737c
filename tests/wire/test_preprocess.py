"""Preprocessing gives the tensor that its formula says, and leaves the stored samples alone."""

from __future__ import annotations

import numpy as np
import pytest

from wire.bundle import InputData, Normalize, Scale
from wire.errors import ContentError
from wire.preprocess import preprocess

PIXELS = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)


def test_scale_then_normalize_on_one_channel() -> None:
    data = InputData(
        stored="raw",
        layout="NCHW",
        preprocessing=(Scale(factor=1 / 255), Normalize(mean=(0.286,), std=(0.353,))),
    )
    result = preprocess(data, PIXELS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(
        result, (PIXELS.astype(np.float32) / 255 - 0.286) / 0.353, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("layout", "axis"), [("NCHW", 1), ("NHWC", 3)])
def test_normalize_per_channel_follows_the_layout(layout: str, axis: int) -> None:
    samples = np.moveaxis(PIXELS, 1, axis)
    data = InputData(
        stored="raw",
        layout=layout,  # type: ignore[arg-type]
        preprocessing=(Normalize(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)),),
    )
    shape = [1, 1, 1, 1]
    shape[axis] = 3
    expected = (samples - np.reshape([1.0, 2.0, 3.0], shape)) / np.reshape([2.0, 4.0, 8.0], shape)
    np.testing.assert_allclose(preprocess(data, samples), expected, rtol=1e-6)


def test_the_stored_samples_are_not_touched() -> None:
    before = PIXELS.copy()
    preprocess(InputData(stored="raw", preprocessing=(Scale(factor=0.5),)), PIXELS)
    assert np.array_equal(before, PIXELS)


def test_a_model_input_is_taken_as_it_is() -> None:
    data = InputData(stored="model_input", preprocessing=(Scale(factor=0.5),))
    assert preprocess(data, PIXELS) is PIXELS


@pytest.mark.parametrize("layout", ["other", "NHWC"])
def test_channels_that_do_not_fit_are_refused(layout: str) -> None:
    data = InputData(
        stored="raw",
        layout=layout,  # type: ignore[arg-type]
        preprocessing=(Normalize(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0)),),
    )
    with pytest.raises(ContentError, match="normalize") as caught:
        preprocess(data, PIXELS)
    assert caught.value.code == "preprocessing_mismatch"
