"""Shallop's side, as a program of its own so that its time and memory can be taken.

`python -m bench.tflite.own convert SUBJECT OUT RECIPE BATCH`: the model is read, cleaned, calibrated,
quantized under the twin's rules and written: OUT/int8.tflite with OUT/int8.onnx, of which it is the twin,
and OUT/float.onnx. BATCH is the length of free first axes.
`python -m bench.tflite.own write MODEL.onnx FILE.tflite BATCH`: the writer alone; prints its seconds as JSON.

For: what the peers do, calibration included, and not measuring candidates, which `shallop-convert` does.
Not for: users.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from converter.tflite import Options, write


def convert(subject: Path, out: Path, recipe: str, batch: int) -> None:
    """Makes the files of a subject; they are not judged.

    Raises:
        ShallopError: it cannot be quantized so, or not written.
    """
    # Here, for the writer alone needs none of it.
    from converter.calibrate import calibrate  # noqa: PLC0415
    from converter.inputs import Options as Given  # noqa: PLC0415
    from converter.inputs import read_inputs, utc_now  # noqa: PLC0415
    from converter.pipeline import cleaned  # noqa: PLC0415
    from converter.quantize import Material, quantize  # noqa: PLC0415
    from converter.recipe import parse  # noqa: PLC0415

    given = Given(
        model=subject / "model.onnx", calibration=subject / "calibration.npz",
        validation=subject / "validation.npz", sla=subject / "sla.yaml", target="host", output=out,
    )  # fmt: skip
    inputs = read_inputs(given, utc_now())
    graph, _ = cleaned(inputs)
    (out / "float.onnx").write_bytes(graph.SerializeToString())
    signature = inputs.source.signature
    material = Material(
        model=graph, calibration=calibrate(graph, inputs.calibration, signature),
        samples=inputs.calibration, signature=signature, rules=inputs.target.rules,
    )  # fmt: skip
    made = quantize(material, parse(recipe)).model
    (out / "int8.onnx").write_bytes(made.SerializeToString())
    (out / "int8.tflite").write_bytes(write(made, Options(batch=batch)).content)


def write_alone(model: Path, file: Path, batch: int) -> None:
    """Writes a graph as it stands; prints what that took without starting Python.

    Raises:
        TFLiteError: it cannot be written.
    """
    import onnx  # noqa: PLC0415

    began = time.perf_counter()
    content = write(onnx.load(str(model)), Options(batch=batch)).content
    file.write_bytes(content)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 3)}))


def main(arguments: list[str]) -> int:
    """What the first argument says."""
    match arguments:
        case ["convert", subject, out, recipe, batch]:
            convert(Path(subject), Path(out), recipe, int(batch))
        case ["write", model, file, batch]:
            write_alone(Path(model), Path(file), int(batch))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
