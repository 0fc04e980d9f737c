"""What single channels of an activation do over the calibration set.

For: equalization, which needs each channel's range and energy. One pass in batches; memory is that of one
batch of the tensors asked for.
Not for: the ranges of whole tensors (`converter.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import Struct
from onnx import helper

from converter.dataset import Samples
from converter.limits import CALIBRATION_BATCH_MAX, CHANNEL_SAMPLES_MAX
from converter.model import Signature
from converter.repair.graph import Floats
from converter.runtime import open_session


class ChannelStatistics(Struct, frozen=True, kw_only=True):
    """Of one tensor, each `[channels]`, in the tensor's own unit.

    Attributes:
        low: smallest value.
        high: largest value.
        mean_square: mean of the squares over samples and places.
    """

    low: Floats
    high: Floats
    mean_square: Floats

    @property
    def reach(self) -> Floats:
        """Largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def divided(self, factors: Floats) -> ChannelStatistics:
        """The same after each channel was divided by its factor (positive): exact."""
        return ChannelStatistics(
            low=self.low / factors, high=self.high / factors, mean_square=self.mean_square / factors**2
        )


def channel_statistics(
    model: onnx.ModelProto, samples: Samples, signature: Signature, axes: Mapping[str, int | None]
) -> dict[str, ChannelStatistics]:
    """Statistics of each tensor in `axes` along that axis, over at most CHANNEL_SAMPLES_MAX samples.

    Args:
        model: the FP32 graph.
        samples: the calibration set; the first samples are used.
        signature: of the model; without a free first axis samples run one by one.
        axes: float32 tensor to the axis of its channels; None takes the whole tensor as one channel.

    Raises:
        Exception: what the runtime raises.
    """
    session = open_session(
        with_outputs(model, list(axes)).SerializeToString(), threads=2, optimization="BASIC"
    )
    size = samples.together(CALIBRATION_BATCH_MAX if signature.batch_free else 1)
    found: dict[str, list[tuple[Floats, Floats, Floats]]] = {name: [] for name in axes}
    used = min(samples.n, CHANNEL_SAMPLES_MAX)
    counts = []
    for start in range(0, used, size):
        stop = min(start + size, used)
        counts.append(stop - start)
        values = session.run(list(axes), samples.feeds(start, stop))
        for (name, axis), tensor in zip(axes.items(), values, strict=True):
            first = tensor[None] if axis is None else np.moveaxis(tensor, axis, 0)
            rows = first.reshape(first.shape[0], -1).astype(np.float64)
            found[name].append((rows.min(axis=1), rows.max(axis=1), np.square(rows).mean(axis=1)))
    return {
        name: ChannelStatistics(
            low=np.min([one[0] for one in parts], axis=0),
            high=np.max([one[1] for one in parts], axis=0),
            mean_square=np.average([one[2] for one in parts], axis=0, weights=counts),
        )
        for name, parts in found.items()
    }


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives these float32 tensors besides its own outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    for name in names:
        if name not in known:
            copy.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy
