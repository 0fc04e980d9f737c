"""One candidate, built and measured.

For: taking an attempt to its files, their answers, their audit and their latency; whatever is raised on the
way becomes the candidate's own reason (FACTS.md, trap 3) and never ends the run.
Not for: judging it, or choosing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from msgspec import Struct, structs

from converter.attempts import LITERT, ONNXRUNTIME, TFLITE_RUNTIME, Attempt, variant_id
from converter.dataset import Feeds
from converter.errors import InputError, RecipeError
from converter.evaluate import Outputs, Quality, answers_of, quality
from converter.fusion import Audit, multiplications
from converter.inputs import Inputs
from converter.latency import Pairs, measure_pairs
from converter.limits import REASON_CHARS_MAX
from converter.loading import Loadable, opened
from converter.making import file_of, host_config, made_of, proved, python_of
from converter.quantize import Made, Material
from converter.recipe import FLOAT32, Recipe, format_recipe
from converter.tflite.proof import Proof

Progress = Callable[[str, int, int], None]

_FEEDS_TIMED = 32
_LEFT_NAMED_MAX = 20
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_WEIGHT_SAFE_MAX = 64
_UNNEEDED = frozenset({"given_none", "recipe_goal", "recipe_islands", "weights_none"})
"""What a recipe is for is not there: no limit that islands could meet, none needed, no matrix."""


class Measured(Struct, frozen=True, kw_only=True):
    """What is known of one candidate; a field is None where it was not measured.

    Attributes:
        id: runtime and recipe.
        recipe: how it was made.
        runtime: that it is for.
        content: the file.
        axes: by name of an input or output: the file's tensor is ONNX's, transposed by these.
        twin_of: id of the candidate that is the same model for another runtime.
        proof: how near a `.tflite` twin is to its graph in ONNX Runtime; None where it is none, or that could
            not be found out.
        outputs: over the whole validation set.
        quality: accuracy and agreement.
        audit: of the optimized graph.
        pairs: latency, interleaved with the baseline.
        cold_load_ms: opening the session.
        entropy_bytes: the graph's size under an ideal entropy coder.
        saturation_unknown: the accuracy is this host's, and the target's arithmetic may saturate.
        error: why it could not be made or run; None if it could.
        unneeded: why there is nothing to make: such a recipe is no row, and the report says so beside them.
        decisions: notes for people.
    """

    id: str
    recipe: Recipe
    runtime: str = ONNXRUNTIME
    content: bytes | None = None
    axes: dict[str, tuple[int, ...]] = {}
    twin_of: str | None = None
    proof: Proof | None = None
    outputs: Outputs | None = None
    quality: Quality | None = None
    audit: Audit | None = None
    pairs: Pairs | None = None
    cold_load_ms: float | None = None
    entropy_bytes: int | None = None
    saturation_unknown: bool = False
    error: str | None = None
    unneeded: str | None = None
    decisions: tuple[str, ...] = ()

    @property
    def sha256(self) -> str | None:
        """Of the file."""
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()


class Bench(Struct, frozen=True, kw_only=True):
    """What all candidates of one conversion are measured with.

    Attributes:
        inputs: of the conversion.
        material: cleaned FP32 graph and what calibration said of it.
        work: multiplications by weight.
        baseline: FP32's measurement; None while that itself is made.
        progress: told (stage, done, in all).
    """

    inputs: Inputs
    material: Material
    work: dict[str, int] | None = None
    baseline: Measured | None = None
    progress: Progress | None = None


def latency_scope(inputs: Inputs, recipe: Recipe, runtime: str = ONNXRUNTIME) -> str | None:
    """`target` on a host of its class, `host` where it runs the same session, None where it emulates."""
    if inputs.host_of_target_class:
        return "target"
    emulates = runtime == ONNXRUNTIME and bool(inputs.target.rules.emulation_config.value)
    arch = inputs.target.requires.value.arch
    same_arch = not arch or inputs.machine.arch in arch
    return "host" if same_arch and not (emulates and recipe.quantized) else None


def measure_baseline(bench: Bench) -> Measured:
    """FP32 itself, without latency, which is measured against it.

    Raises:
        InputError: `baseline_unusable`: the model does not run, or its answers are not finite.
    """
    inputs = bench.inputs
    with must_run("validation"):
        work = multiplications(bench.material.model)
        file = file_of(inputs, Made(model=bench.material.model), FLOAT32, ONNXRUNTIME, work)
        outputs = _outputs(bench, file.one, FLOAT32)
        judged = quality(inputs.task, outputs, outputs, inputs.validation)
    return Measured(
        id=variant_id(FLOAT32), recipe=FLOAT32, content=file.one.content, outputs=outputs,
        quality=judged, audit=file.audit, entropy_bytes=file.entropy_bytes,
    )  # fmt: skip


def answer_candidate(bench: Bench, attempt: Attempt) -> tuple[Measured, ...]:
    """Makes one and takes its answers, anywhere; a row for each runtime, and what is raised is its error."""
    stage = f"make {format_recipe(attempt.recipe)}"
    _tell(bench, stage, 0)
    try:
        made = made_of(bench.material, attempt)
    except Exception as error:  # noqa: BLE001 - a candidate that raises is a row, never the end (trap 3)
        return tuple(_failed(attempt.recipe, runtime, error) for runtime in attempt.runtimes)
    finally:
        _tell(bench, stage, 1)
    return tuple(_guarded(bench, made, made.recipe or attempt.recipe, one) for one in attempt.runtimes)


def _guarded(bench: Bench, made: Made, recipe: Recipe, runtime: str) -> Measured:
    """One runtime's row: what fails there leaves the other's alone."""
    try:
        return _answered(bench, made, recipe, runtime)
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(recipe, runtime, error)


def _failed(recipe: Recipe, runtime: str, error: Exception) -> Measured:
    told = reason_of(error)
    unneeded = isinstance(error, RecipeError) and error.code in _UNNEEDED
    return Measured(
        id=variant_id(recipe, runtime), recipe=recipe, runtime=runtime, error=told,
        unneeded=told if unneeded else None,
    )  # fmt: skip


def time_candidate(bench: Bench, one: Measured) -> Measured:
    """Its latency, here and alone, whoever built it; what is raised becomes its error."""
    if one.error is not None or one.content is None:
        return one
    try:
        pairs, cold_load_ms = _latency(bench, one)
    except Exception as error:  # noqa: BLE001 - as above
        return Measured(id=one.id, recipe=one.recipe, runtime=one.runtime, error=reason_of(error))
    notes = _latency_notes(bench.inputs, one, pairs)
    return structs.replace(one, pairs=pairs, cold_load_ms=cold_load_ms, decisions=(*one.decisions, *notes))


def _answered(bench: Bench, made: Made, recipe: Recipe, runtime: str) -> Measured:
    inputs, baseline = bench.inputs, bench.baseline
    if baseline is None or baseline.outputs is None:
        raise RuntimeError("the baseline is measured first")
    file = file_of(inputs, made, recipe, runtime, bench.work)
    outputs = _outputs(bench, file.one, recipe)
    unknown, notes = saturation(inputs, recipe, file.widest, made.saturating)
    proof, said = _proof(bench, made, recipe, runtime)
    return Measured(
        id=variant_id(recipe, runtime), recipe=recipe, runtime=runtime, content=file.one.content,
        axes=dict(file.one.axes), proof=proof, outputs=outputs,
        quality=quality(inputs.task, outputs, baseline.outputs, inputs.validation),
        audit=file.audit, entropy_bytes=file.entropy_bytes, saturation_unknown=unknown,
        decisions=(*made.decisions, *file.notes, *said, *audit_notes(file.audit), *notes),
    )  # fmt: skip


def _proof(bench: Bench, made: Made, recipe: Recipe, runtime: str) -> tuple[Proof | None, tuple[str, ...]]:
    """Of a twin's `.tflite` file; a proof that cannot be made costs the candidate nothing but a note."""
    if runtime != LITERT or not recipe.twin:
        return None, ()
    said = bench.progress
    told = None if said is None else (lambda stage, done, total: said(f"parity of {stage}", done, total))
    try:
        found = proved(bench.inputs, made, recipe, told)
    except Exception as error:  # noqa: BLE001 - the twin may be good although its proof is not
        return None, (f"parity is unknown: {reason_of(error)}",)
    return found, ()


def audit_notes(audited: Audit) -> tuple[str, ...]:
    """What the runtime left in float although the graph is quantized, at most so many by name."""
    named = audited.left_float[:_LEFT_NAMED_MAX]
    more = len(audited.left_float) - len(named)
    return (
        *(f"runs in float: {one}" for one in named),
        *((f"and {more} more run in float",) if more else ()),
    )


def _tell(bench: Bench, stage: str, done: int) -> None:
    """A stage of one step: its bar shows that it runs and for how long."""
    if bench.progress is not None:
        bench.progress(stage, done, 1)


def _outputs(bench: Bench, one: Loadable, recipe: Recipe) -> Outputs:
    inputs, said = bench.inputs, bench.progress
    names = tuple(spec.name for spec in inputs.source.signature.outputs)
    stage = f"evaluate {variant_id(recipe, one.runtime)}"
    told = None if said is None else (lambda done, total: said(stage, done, total))
    return answers_of(one, inputs.validation, names, told)


def loadable(inputs: Inputs, one: Measured) -> Loadable:
    """The file of a candidate, and how this host opens it; it is there."""
    config = host_config(inputs, one.recipe) if one.runtime == ONNXRUNTIME else {}
    return Loadable(
        content=one.content or b"", runtime=one.runtime, config=config, axes=one.axes,
        python=python_of(inputs, one.runtime),
    )  # fmt: skip


def _latency(bench: Bench, one: Measured) -> tuple[Pairs | None, float | None]:
    """Pairs against the baseline, and how long opening took; None where this host says nothing."""
    inputs, baseline = bench.inputs, bench.baseline
    if not _timed(inputs, one) or baseline is None or baseline.content is None:
        return None, None
    file = loadable(inputs, one)
    begun = time.perf_counter()
    session = opened(file, inputs.threads)
    cold_load_ms = (time.perf_counter() - begun) * 1000
    reference = opened(loadable(inputs, baseline), inputs.threads)
    _tell(bench, f"time {one.id}", 0)
    pairs = measure_pairs(session, reference, _feeds(inputs), inputs.latency_samples)
    _tell(bench, f"time {one.id}", 1)
    return pairs, cold_load_ms


def _timed(inputs: Inputs, one: Measured) -> bool:
    """Whether a time measured here would say something: one sample's, in a session like the target's."""
    several = one.runtime == LITERT and inputs.batch > 1
    elsewhere = one.runtime == TFLITE_RUNTIME
    return latency_scope(inputs, one.recipe, one.runtime) is not None and not several and not elsewhere


def baseline_alone(bench: Bench, baseline: Measured) -> tuple[Pairs | None, float | None]:
    """FP32 timed against itself, for its own figures where no candidate was timed."""
    return _latency(Bench(inputs=bench.inputs, material=bench.material, baseline=baseline), baseline)


def _feeds(inputs: Inputs) -> list[Feeds]:
    count = min(_FEEDS_TIMED, inputs.validation.n)
    return list(islice(inputs.validation.singles(0, count), count))


def _latency_notes(inputs: Inputs, one: Measured, pairs: Pairs | None) -> tuple[str, ...]:
    scope = latency_scope(inputs, one.recipe, one.runtime)
    if scope is None:
        return (_why_unknown(inputs, one.runtime),)
    if one.runtime == TFLITE_RUNTIME:
        return ("latency unknown: tflite-runtime is asked over a pipe here, which would be timed with it",)
    if not _timed(inputs, one):
        return (f"latency unknown: the file takes {inputs.batch} samples at once, the baseline one",)
    notes = [] if scope == "target" else ["latency is this host's, not the target's"]
    if pairs is not None and len(pairs.candidate_ms) < inputs.latency_samples:
        notes.append(f"latency from {len(pairs.candidate_ms)} pairs: the time for measuring was spent")
    return tuple(notes)


def _why_unknown(inputs: Inputs, runtime: str) -> str:
    if runtime == ONNXRUNTIME and inputs.target.rules.emulation_config.value:
        return "latency unknown: this host emulates the target's arithmetic"
    return "latency unknown: the target is another kind of processor"


def saturation(
    inputs: Inputs, recipe: Recipe, widest: int | None, saturating: tuple[str, ...] | None = None
) -> tuple[bool, tuple[str, ...]]:
    """Whether 16-bit saturation makes this host's accuracy doubtful for the target, with the notes.

    x86 without VNNI adds two 8-bit products in 16 bits. With weights within 64 that cannot overflow
    (`converter.fusion.widest_weight`); beyond, host and target may differ where only one of them has it,
    unless the emulation on calibration samples (`saturating`, None where it was not run) found no layer.
    """
    if not recipe.quantized or widest is None or inputs.host_of_target_class:
        return False, ()
    host_saturates = inputs.machine.arch == "x86_64" and not inputs.machine.features & _VNNI
    target_saturates = inputs.target.rules.reduce_range.value
    if host_saturates == target_saturates:
        return False, ()
    if widest <= _WEIGHT_SAFE_MAX:
        return False, (f"cannot saturate 16-bit sums: no weight above {widest} in size",)
    if saturating is not None and not saturating:
        return False, ("no 16-bit sum saturates on the calibration samples (emulated)",)
    who = "the target" if target_saturates else "this host"
    notes = tuple(f"saturates without VNNI: {one}" for one in saturating or ())
    return True, (f"accuracy unproven: {who} may saturate 16-bit sums and the other does not", *notes)


@contextmanager
def must_run(data_set: str) -> Iterator[None]:
    """Turns whatever the FP32 model raises into bad input: without it there is nothing to compare with.

    Raises:
        InputError: `baseline_unusable`, or the one that was raised within.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            "baseline_unusable",
            f"the FP32 model does not run on the {data_set} set: {reason_of(error)}; check model and data",
        ) from error


def reason_of(error: Exception) -> str:
    """What was raised, in one short line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:REASON_CHARS_MAX]
