"""From an attempt to the files of its runtimes.

For: `made_of()`, the one graph of an attempt; `file_of()`, what each runtime loads of it, with what can be
said of the file itself.
Not for: running it (`converter.measured`), or how either is made (`converter.quantize`, `converter.tflite`).
"""

from __future__ import annotations

import msgspec
import onnx
from msgspec import Struct, structs

from converter.attempts import ALONE, DYNAMIC, FLOAT16, TFLITE, TFLITE_RUNTIME, Attempt
from converter.dataset import Samples
from converter.fusion import Audit, audit, widest_weight
from converter.inputs import Inputs
from converter.loading import Loadable
from converter.lossless import entropy_bytes, tflite_entropy_bytes
from converter.quantize import Made, Material, quantize
from converter.recipe import Recipe, format_recipe
from converter.tflite import Options, Written, write
from converter.tflite.options import Weights
from converter.tflite.parity import Limits, Progress, prove
from converter.tflite.proof import Proof
from converter.tflite_audit import audit_tflite

METADATA_NAME = "shallop.json"
_PROOF_SAMPLES = 8
_PROOF_SECONDS = 30.0


class ModelFile(Struct, frozen=True, kw_only=True):
    """What one runtime loads.

    Attributes:
        one: the file and how it is opened.
        audit: what the runtime runs of it.
        entropy_bytes: the file's size under an ideal entropy coder.
        widest: largest absolute 8-bit weight of an ONNX graph; None without any, and in TFLite, whose kernels
            do not add products in 16 bits.
        notes: for people.
    """

    one: Loadable
    audit: Audit
    entropy_bytes: int
    widest: int | None = None
    notes: tuple[str, ...] = ()


def made_of(material: Material, attempt: Attempt) -> Made:
    """The graph of an attempt, made once for all its runtimes.

    Raises:
        RecipeError: as `converter.quantize.quantize`.
        Exception: likewise.
    """
    if set(attempt.runtimes) <= TFLITE and attempt.recipe in ALONE:
        # The writer stores the FP32 graph's weights as the recipe says.
        return Made(model=material.model)
    return quantize(material, attempt.recipe)


def file_of(
    inputs: Inputs, made: Made, recipe: Recipe, runtime: str, work: dict[str, int] | None
) -> ModelFile:
    """The file for one runtime.

    Args:
        inputs: of the conversion.
        made: the attempt's graph.
        recipe: that it was made by.
        runtime: that is to load it.
        work: multiplications by weight of the FP32 graph.

    Raises:
        TFLiteError: the graph cannot be written as TFLite; nothing is.
        Exception: what the runtime raises.
    """
    if runtime in TFLITE:
        return _tflite(inputs, made, recipe, runtime)
    content = made.model.SerializeToString()
    config = host_config(inputs, recipe)
    return ModelFile(
        one=Loadable(content=content, runtime=runtime, config=config),
        audit=audit(content, config, work),
        entropy_bytes=entropy_bytes(made.model),
        widest=widest_weight(made.model),
    )


def host_config(inputs: Inputs, recipe: Recipe) -> dict[str, str]:
    """Session entries of ONNX Runtime with which this host computes the device's answers."""
    config = inputs.target.session_config(recipe)
    if not inputs.host_of_target_class and recipe.quantized:
        config |= inputs.target.rules.emulation_config.value
    return config


def _tflite(inputs: Inputs, made: Made, recipe: Recipe, runtime: str) -> ModelFile:
    model, fixed = at_the_samples_shape(made.model, inputs.validation)
    written = write(model, options_of(inputs, recipe))
    # Only an integer model leaves something in float; the others are float by their recipe.
    left = written.float_left if recipe.kind == "static" else ()
    return ModelFile(
        one=Loadable(
            content=written.content, runtime=runtime, axes=written.axes, python=python_of(inputs, runtime)
        ),
        audit=audit_tflite(written.content, left),
        entropy_bytes=tflite_entropy_bytes(written.content),
        notes=(*fixed, *_file_notes(inputs, written)),
    )


def python_of(inputs: Inputs, runtime: str) -> str:
    """Where a runtime lives, if that is not here."""
    neighbour = inputs.neighbour
    return neighbour.python if neighbour is not None and runtime == TFLITE_RUNTIME else ""


def proved(inputs: Inputs, made: Made, recipe: Recipe, progress: Progress | None) -> Proof:
    """How near the twin's file is to the graph that it was made of, on samples of the validation set.

    With float edges and a batch of 1, whatever the file has: what lies between is the same.

    Raises:
        Exception: what a runtime raises for the graph or its file.
    """
    model, _ = at_the_samples_shape(made.model, inputs.validation)
    options = structs.replace(options_of(inputs, recipe), edge="float32", batch=1)
    samples = inputs.validation.singles(0, min(_PROOF_SAMPLES, inputs.validation.n))
    limits = Limits(samples=_PROOF_SAMPLES, seconds=_PROOF_SECONDS)
    return prove(model, samples, options, limits=limits, progress=progress)


def at_the_samples_shape(model: onnx.ModelProto, samples: Samples) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph with every free axis but the batch's as long as the samples are, and a note for each.

    A `.tflite` file has fixed shapes, and all samples of a set have one; the graph itself is not changed.
    """
    feeds = next(iter(samples.singles(0, 1)))
    copy, notes = onnx.ModelProto(), []
    copy.CopyFrom(model)
    for value in copy.graph.input:
        data = samples.data.get(value.name)
        counts_samples = data is None or not data.whole
        dims = value.type.tensor_type.shape.dim
        if value.name not in feeds or len(dims) != feeds[value.name].ndim:
            continue
        for axis, (dim, size) in enumerate(zip(dims, feeds[value.name].shape, strict=True)):
            if dim.dim_value > 0 or (axis == 0 and counts_samples):
                continue
            notes.append(f"axis {axis} of {value.name} is {size} in the file, as in the samples")
            dim.ClearField("dim_param")
            dim.dim_value = size
    return copy, tuple(notes)


def _file_notes(inputs: Inputs, written: Written) -> tuple[str, ...]:
    """What a person must know to use the file by hand."""
    said = [
        f"{name} lies with the ONNX model's axes in the order {', '.join(map(str, axes))}"
        for name, axes in written.axes.items()
    ]
    transposes = written.operators.get("TRANSPOSE", 0)
    said.append(f"{sum(written.operators.values())} operators, {transposes} of them TRANSPOSE")
    if inputs.batch > 1:
        said.append(f"takes {inputs.batch} samples at once")
    return tuple(said)


def options_of(inputs: Inputs, recipe: Recipe) -> Options:
    """How a recipe's file is written."""
    weights: dict[Recipe, Weights] = {FLOAT16: "float16", DYNAMIC: "dynamic_int8"}
    return Options(
        edge=inputs.edge if recipe.kind == "static" else "float32",
        batch=inputs.batch,
        weights=weights.get(recipe, "as_is"),
        name=inputs.name,
        description=f"{format_recipe(recipe)}, written by Shallop",
        metadata={METADATA_NAME: metadata_of(inputs)},
    )


def metadata_of(inputs: Inputs) -> bytes:
    """What whoever has the file alone needs: labels, and what stands between a raw sample and the tensor.

    JSON: `version`, `labels`, and `inputs`: by name what `wire.bundle.InputData` says of it. Neither release
    nor date, so that equal models stay equal files.
    """
    described = inputs.description
    told = {"version": 1, "labels": described.labels, "inputs": described.inputs}
    return msgspec.json.encode(told, order="deterministic")
