"""Peak memory of calibrating with few samples and with many: `python -m bench.calibration_memory`.

For: showing that the peak does not grow with the set. Each run is a fresh process on the example's model
and calibration set (its samples repeated in turn, each changed a little), and reports its peak resident
size; prints JSON. The set itself is held as it is stored, its bytes stand beside the peak.
Not for: speed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from converter.calibrate import calibrate
from converter.dataset import Samples, read_description, read_samples
from converter.model import signature

_FOLDER = Path(__file__).parent.parent / "examples" / "fashion"
FEW, MANY = 50, 2000
_RATIO_MAX = 1.2
_KIB = 1024


def peak(n: int) -> dict[str, int]:
    """Calibrates with `n` samples in this process; `peak_bytes` is that of the whole process."""
    model = onnx.load(str(_FOLDER / "fashion_v1.onnx"))
    takes = signature(model)
    description = read_description(_FOLDER / "dataset.yaml")
    held = read_samples(_FOLDER / "calibration.npz", description, takes, labelled=False)
    arrays = {}
    for name, array in held.arrays.items():
        many = array[np.arange(n) % held.n]
        many[np.arange(n), ..., 0, 0] = (np.arange(n) // held.n).astype(array.dtype)[:, None]
        arrays[name] = many
    samples = Samples(path=held.path, sha256=held.sha256, arrays=arrays, data=held.data, n=n)
    found = calibrate(model, samples, takes)
    return {
        "samples": found.n_samples,
        "tensors": len(found.tensors),
        "set_bytes": sum(array.nbytes for array in arrays.values()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
    }


def main() -> int:
    """Runs both in processes of their own; exit 1 where the peak grew by more than a fifth."""
    if len(sys.argv) > 1:
        print(json.dumps(peak(int(sys.argv[1]))))
        return 0
    command = [sys.executable, "-m", "bench.calibration_memory"]
    few, many = (
        json.loads(subprocess.run([*command, str(n)], check=True, capture_output=True).stdout)
        for n in (FEW, MANY)
    )
    ratio = many["peak_bytes"] / few["peak_bytes"]
    print(json.dumps({"few": few, "many": many, "ratio": round(ratio, 3), "ratio_max": _RATIO_MAX}, indent=2))
    return 0 if ratio <= _RATIO_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
