"""One candidate, built and measured.

For: taking a recipe to a graph, its answers, its fusion audit and its latency; whatever is raised on the
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

from converter.dataset import Feeds
from converter.errors import InputError, RecipeError
from converter.evaluate import Outputs, Quality, outputs_of, quality
from converter.fusion import Audit, audit, multiplications, widest_weight
from converter.inputs import Inputs
from converter.latency import Pairs, measure_pairs
from converter.limits import REASON_CHARS_MAX
from converter.lossless import entropy_bytes
from converter.quantize import Material, quantize
from converter.recipe import FLOAT32, Recipe, format_recipe
from converter.runtime import NAME, open_session

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
        content: the serialized graph.
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
    content: bytes | None = None
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
        """Of the serialized graph."""
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


def variant_id(recipe: Recipe) -> str:
    """`runtime/recipe`."""
    return f"{NAME}/{format_recipe(recipe)}"


def latency_scope(inputs: Inputs, recipe: Recipe) -> str | None:
    """`target` on a host of its class, `host` where it runs the same session, None where it emulates."""
    if inputs.host_of_target_class:
        return "target"
    emulates = bool(inputs.target.rules.emulation_config.value)
    arch = inputs.target.requires.value.arch
    same_arch = not arch or inputs.machine.arch in arch
    return "host" if same_arch and not (emulates and recipe.quantized) else None


def host_config(inputs: Inputs, recipe: Recipe) -> dict[str, str]:
    """Session entries with which this host computes the device's answers."""
    config = inputs.target.session_config(recipe)
    if not inputs.host_of_target_class and recipe.quantized:
        config |= inputs.target.rules.emulation_config.value
    return config


def measure_baseline(bench: Bench) -> Measured:
    """FP32 itself, without latency, which is measured against it.

    Raises:
        InputError: `baseline_unusable`: the model does not run, or its answers are not finite.
    """
    inputs = bench.inputs
    content = bench.material.model.SerializeToString()
    with must_run("validation"):
        outputs = _outputs(bench, content, FLOAT32)
        audited = audit(content, {}, multiplications(bench.material.model))
        judged = quality(inputs.task, outputs, outputs, inputs.validation)
    return Measured(
        id=variant_id(FLOAT32), recipe=FLOAT32, content=content, outputs=outputs,
        quality=judged, audit=audited, entropy_bytes=entropy_bytes(bench.material.model),
    )  # fmt: skip


def answer_candidate(bench: Bench, recipe: Recipe) -> Measured:
    """Builds one and takes its answers, anywhere; what is raised becomes its error."""
    try:
        return _answered(bench, recipe)
    except RecipeError as error:
        told = reason_of(error)
        unneeded = error.code in _UNNEEDED
        return Measured(id=variant_id(recipe), recipe=recipe, error=told, unneeded=told if unneeded else None)
    except Exception as error:  # noqa: BLE001 - a candidate that raises is a row, never the end (trap 3)
        return Measured(id=variant_id(recipe), recipe=recipe, error=reason_of(error))


def time_candidate(bench: Bench, one: Measured) -> Measured:
    """Its latency, here and alone, whoever built it; what is raised becomes its error."""
    if one.error is not None or one.content is None:
        return one
    try:
        pairs, cold_load_ms = _latency(bench, one.content, one.recipe)
    except Exception as error:  # noqa: BLE001 - as above
        return Measured(id=one.id, recipe=one.recipe, error=reason_of(error))
    notes = _latency_notes(bench.inputs, one.recipe, pairs)
    return structs.replace(one, pairs=pairs, cold_load_ms=cold_load_ms, decisions=(*one.decisions, *notes))


def _answered(bench: Bench, recipe: Recipe) -> Measured:
    inputs, baseline = bench.inputs, bench.baseline
    if baseline is None or baseline.outputs is None:
        raise RuntimeError("the baseline is measured first")
    stage = f"make {format_recipe(recipe)}"
    _tell(bench, stage, 0)
    made = quantize(bench.material, recipe)
    _tell(bench, stage, 1)
    made_as = made.recipe or recipe
    content = made.model.SerializeToString()
    config = host_config(inputs, recipe)
    audited = audit(content, config, bench.work)
    outputs = _outputs(bench, content, recipe)
    unknown, notes = saturation(inputs, recipe, widest_weight(made.model), made.saturating)
    return Measured(
        id=variant_id(made_as), recipe=made_as, content=content, outputs=outputs,
        quality=quality(inputs.task, outputs, baseline.outputs, inputs.validation),
        audit=audited, entropy_bytes=entropy_bytes(made.model), saturation_unknown=unknown,
        decisions=(*made.decisions, *audit_notes(audited), *notes),
    )  # fmt: skip


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


def _outputs(bench: Bench, content: bytes, recipe: Recipe) -> Outputs:
    inputs, said = bench.inputs, bench.progress
    names = tuple(spec.name for spec in inputs.source.signature.outputs)
    stage = f"evaluate {format_recipe(recipe)}"
    told = None if said is None else (lambda done, total: said(stage, done, total))
    return outputs_of(content, host_config(inputs, recipe), inputs.validation, names, told)


def _latency(bench: Bench, content: bytes, recipe: Recipe) -> tuple[Pairs | None, float | None]:
    """Pairs against the baseline, and how long opening took; None where this host says nothing."""
    inputs, baseline = bench.inputs, bench.baseline
    if latency_scope(inputs, recipe) is None or baseline is None or baseline.content is None:
        return None, None
    begun = time.perf_counter()
    session = open_session(content, threads=inputs.threads, config=host_config(inputs, recipe))
    cold_load_ms = (time.perf_counter() - begun) * 1000
    reference = open_session(baseline.content, threads=inputs.threads)
    _tell(bench, f"time {format_recipe(recipe)}", 0)
    pairs = measure_pairs(session, reference, _feeds(inputs), inputs.latency_samples)
    _tell(bench, f"time {format_recipe(recipe)}", 1)
    return pairs, cold_load_ms


def baseline_alone(bench: Bench, baseline: Measured) -> tuple[Pairs | None, float | None]:
    """FP32 timed against itself, for its own figures where no candidate was timed."""
    alone = Bench(inputs=bench.inputs, material=bench.material, baseline=baseline)
    return _latency(alone, baseline.content or b"", FLOAT32)


def _feeds(inputs: Inputs) -> list[Feeds]:
    count = min(_FEEDS_TIMED, inputs.validation.n)
    return list(islice(inputs.validation.singles(0, count), count))


def _latency_notes(inputs: Inputs, recipe: Recipe, pairs: Pairs | None) -> tuple[str, ...]:
    scope = latency_scope(inputs, recipe)
    if scope is None:
        return ("latency unknown: this host emulates the target's arithmetic",)
    notes = [] if scope == "target" else ["latency is this host's, not the target's"]
    if pairs is not None and len(pairs.candidate_ms) < inputs.latency_samples:
        notes.append(f"latency from {len(pairs.candidate_ms)} pairs: the time for measuring was spent")
    return tuple(notes)


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
