"""The peers, each driven as its own documentation says; run as a script in the peers' environment.

`python bench/converter/peers.py TOOL MODEL CALIBRATION.npz OUT.onnx CLEANED.onnx`

For: `ort_expert` (U8S8, per channel, MinMax, on the graph that Shallop cleaned, which is the most that an
expert could ask for), `ort_defaults` (what `quantize_static` does when nothing is said, after its own
`quant_pre_process`), `nncf` (its ONNX backend with its default preset) and `nncf_mixed`.
Not for: judging what comes out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

_SAMPLES_MAX = 300
"""NNCF's own default subset; the others get as many."""


def feeds(path: str, whole_clips: tuple[str, ...] = ("audio_vad",)) -> Iterator[Feeds]:
    """Single samples of a calibration set, as the model takes them."""
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files if name != "labels"}
    n = max(len(array) for array in arrays.values())
    clip = Path(path).parent.name in whole_clips
    begin = Path(path).with_name("state.npz")
    state = dict(np.load(begin)) if begin.is_file() else {}
    for i in range(min(n, _SAMPLES_MAX)):
        yield {name: array[i] if clip else array[i : i + 1] for name, array in arrays.items()} | state


def ort_static(model: str, calibration: str, out: str, **settings: object) -> None:
    """Onnxruntime's quantize_static."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static  # noqa: PLC0415

    class Reader(CalibrationDataReader):  # type: ignore[misc] # the wheel carries no types
        """Hands out one sample after another."""

        def __init__(self) -> None:
            self._feeds = feeds(calibration)

        def get_next(self) -> Feeds | None:
            """The next sample; None at the end."""
            return next(self._feeds, None)

    quantize_static(model, out, Reader(), **settings)


def ort_expert(_model: str, calibration: str, out: str, cleaned: str) -> None:
    """As someone sets it who has read all of its documentation."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType  # noqa: PLC0415

    ort_static(
        cleaned, calibration, out, quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip


def ort_defaults(model: str, calibration: str, out: str, _cleaned: str) -> None:
    """As someone sets it who has read the first example."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(model, prepared)
        ort_static(prepared, calibration, out)


def nncf(model: str, calibration: str, out: str, _cleaned: str, *, mixed: bool = False) -> None:
    """NNCF's `quantize` on an ONNX model."""
    import nncf as library  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    preset = library.QuantizationPreset.MIXED if mixed else library.QuantizationPreset.PERFORMANCE
    transformer = library.ModelType.TRANSFORMER if "minilm" in model else None
    dataset = library.Dataset(list(feeds(calibration)))
    made = library.quantize(onnx.load(model), dataset, preset=preset, model_type=transformer)
    onnx.save(made, out)


def nncf_mixed(model: str, calibration: str, out: str, cleaned: str) -> None:
    """The same with asymmetric activations."""
    nncf(model, calibration, out, cleaned, mixed=True)


TOOLS = {
    "ort_expert": ort_expert,
    "ort_defaults": ort_defaults,
    "nncf": nncf,
    "nncf_mixed": nncf_mixed,
}

if __name__ == "__main__":
    TOOLS[sys.argv[1]](*sys.argv[2:])
