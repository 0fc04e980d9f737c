"""PURE. The closed list of preprocessing operations, executed.

For: turning stored raw samples into a model's input in one way on the host and on the device; the wrong
preprocessing costs eight points without any quantization (FACTS.md, trap 8).
Not for: decoding images, or anything that a manifest does not name.

The arrays are the caller's: numpy is not imported here, because the agent's daemon imports `wire` and
must stay light. Only operators, `astype`, `shape` and slices of a numpy-like array are used.
"""

from __future__ import annotations

from typing import Any, TypeVar

from wire.bundle import InputData, Normalize, Scale
from wire.errors import ContentError

ArrayT = TypeVar("ArrayT", bound=Any)


def preprocess(data: InputData, samples: ArrayT) -> ArrayT:
    """Applies `data.preprocessing` in order.

    Args:
        data: of one input, from the manifest.
        samples: numpy-like, first axis samples. `stored: model_input` is returned as it is.

    Returns:
        float32 where any operation ran.

    Raises:
        ContentError: `preprocessing_mismatch`: a normalization per channel that does not fit the
            number of channels, or a layout without channels.
    """
    if data.stored == "model_input" or not data.preprocessing:
        return samples
    result: ArrayT = samples.astype("float32")
    for operation in data.preprocessing:
        if isinstance(operation, Scale):
            result *= operation.factor
        else:
            _normalize(operation, result, data.layout)
    return result


def _normalize(operation: Normalize, array: Any, layout: str) -> None:  # noqa: ANN401
    """In place, so that a shard is held once."""
    if len(operation.mean) == 1:
        array -= operation.mean[0]
        array /= operation.std[0]
        return
    if layout == "other":
        raise ContentError("preprocessing_mismatch", "normalize per channel needs layout NCHW or NHWC")
    channels = array.shape[1 if layout == "NCHW" else -1]
    if channels != len(operation.mean):
        raise ContentError(
            "preprocessing_mismatch",
            f"normalize names {len(operation.mean)} channels, the samples have {channels}",
        )
    for channel, (mean, std) in enumerate(zip(operation.mean, operation.std, strict=True)):
        plane = array[:, channel] if layout == "NCHW" else array[..., channel]
        plane -= mean
        plane /= std
