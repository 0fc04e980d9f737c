"""litert-quantizer, run as a script in its own environment.

`python quantizer_peer.py UPDATE FLOAT.tflite CALIBRATION.npz OUT.tflite`; UPDATE: min_max, moving_average.

For: its static INT8 recipe with the calibration that its documentation recommends, the profiler's; ranges are
those of all samples (`min_max_update`), or its default, a moving average. Edges stay float, as in the files
beside it.
Not for: judging what comes out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from litert_quantizer import (  # type: ignore[import-not-found] # not in this environment
    algorithm_manager,
    calibrator,
    qtyping,
    quantizer,
    recipe,
)
from litert_quantizer.utils import qsv_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

_SIGNATURE = "serving_default"


def main(update: str, model: str, calibration: str, out: str) -> None:
    """Quantizes one file."""
    tool = quantizer.Quantizer(model)
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(
            regex=".*", operation_name=edge, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )
    how = {"qsv_update_func": qsv_utils.min_max_update} if update == "min_max" else {}
    found = calibrator.Calibrator(
        model,
        num_threads=os.cpu_count() or 1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        **how,
    )
    found.calibrate({_SIGNATURE: list(_samples(calibration))}, tool._recipe_manager)  # noqa: SLF001 - as calibrate() does
    tool.quantize(found.get_model_qsvs()).export_model(out, overwrite=True)


def _samples(path: str) -> Iterator[dict[str, NDArray[Any]]]:
    """Single samples, as the file takes them: laid out by `bench.tflite.tools`."""
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    for i in range(len(next(iter(arrays.values())))):
        yield {name: array[i] for name, array in arrays.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
