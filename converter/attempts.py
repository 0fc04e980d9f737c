"""PURE. What is tried: a recipe, and the runtimes that its model is written for.

For: `Attempt`, its name on the command line, and `attempts_of()`: what joins a target's recipes where TFLite
is wanted. One attempt is one graph with one calibration; each of its runtimes gets a file and a row.
Not for: making them (`converter.making`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from converter.recipe import FLOAT32, Recipe, RecipeNameError, format_recipe, parse

ONNXRUNTIME = "onnxruntime"
LITERT = "ai-edge-litert"
TFLITE_RUNTIME = "tflite-runtime"
"""LiteRT's predecessor; it lives in an environment of its own (`converter.neighbour`)."""
TFLITE = frozenset({LITERT, TFLITE_RUNTIME})
"""Runtimes that load .tflite files."""

Format = Literal["onnx", "tflite", "both"]
Edge = Literal["float32", "int8", "uint8"]

FLOAT16 = Recipe(kind="float", weight="f16", activation="f16")
DYNAMIC = Recipe(kind="dynamic", weight="i8", activation="f32", granularity="pc")
ALONE = (DYNAMIC, FLOAT16, FLOAT32)
"""What is written for LiteRT without a twin, of the FP32 graph."""


class Attempt(Struct, frozen=True):
    """One way to make a model.

    Attributes:
        recipe: how.
        runtimes: that its graph is written for, at least one; the first is the one whose row stands first.
    """

    recipe: Recipe
    runtimes: tuple[str, ...] = (ONNXRUNTIME,)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its rows."""
        return tuple(variant_id(self.recipe, runtime) for runtime in self.runtimes)


def variant_id(recipe: Recipe, runtime: str = ONNXRUNTIME) -> str:
    """`runtime/recipe`, the runtime's dash as an underscore.

    >>> variant_id(FLOAT32, LITERT)
    'ai_edge_litert/float_wf32_af32'
    """
    return f"{runtime.replace('-', '_')}/{format_recipe(recipe)}"


def parse_attempt(name: str, form: Format, *, takes_onnx: bool) -> Attempt:
    """The attempt of `[RUNTIME/]RECIPE`.

    Args:
        name: as it was given. Without a runtime a twin is for all that is written, and any other recipe for
            LiteRT where only TFLite competes, else for ONNX Runtime.
        form: what is written.
        takes_onnx: whether the target does.

    Raises:
        RecipeNameError: `recipe_malformed`; `runtime_unknown`; `recipe_runtime`: LiteRT has no such recipe,
            or nothing is written for that runtime.
    """
    runtime, slash, rest = name.rpartition("/")
    recipe = parse(rest)
    named = (runtime.replace("_", "-"),) if slash else _runtimes(recipe, form, takes_onnx=takes_onnx)
    if not set(named) <= {ONNXRUNTIME, *TFLITE}:
        raise RecipeNameError(
            "runtime_unknown",
            f"{name[:80]!r} names no runtime; they are {ONNXRUNTIME}, ai_edge_litert and tflite_runtime",
        )
    if (LITERT in named and form == "onnx") or (ONNXRUNTIME in named and not takes_onnx):
        raise RecipeNameError(
            "recipe_runtime", f"{name[:80]!r}: nothing is written for {named[0]} here; see --format"
        )
    if LITERT in named and not recipe.twin and recipe not in ALONE:
        known = ", ".join(format_recipe(one) for one in ALONE)
        raise RecipeNameError(
            "recipe_runtime",
            f"{format_recipe(recipe)} cannot be written for LiteRT: its recipes are {known} "
            "and the static ones that end in _twin",
        )
    return Attempt(recipe, named)


def _runtimes(recipe: Recipe, form: Format, *, takes_onnx: bool) -> tuple[str, ...]:
    """Those that are meant where none is named."""
    if form == "onnx" or (form == "both" and not recipe.twin):
        return (ONNXRUNTIME,)
    return (ONNXRUNTIME, LITERT) if takes_onnx and recipe.twin else (LITERT,)


def tflite_of(pairs: Iterable[tuple[str, Recipe]]) -> tuple[Attempt, ...]:
    """Attempts of rows, each a runtime and a recipe: those of one recipe are one, for they are one graph."""
    found: dict[Recipe, list[str]] = {}
    for runtime, recipe in pairs:
        found.setdefault(recipe, []).append(runtime)
    return tuple(Attempt(recipe, tuple(runtimes)) for recipe, runtimes in found.items())


def attempts_of(recipes: Sequence[Recipe], tflite: Sequence[Attempt], form: Format) -> tuple[Attempt, ...]:
    """All that is tried, in the order of preference.

    Args:
        recipes: of the target for ONNX Runtime, best first.
        tflite: what joins where TFLite files are written, best first.
        form: what is written. With `tflite` the ONNX rows that remain are the twins' counterparts.
    """
    plain = [Attempt(recipe) for recipe in recipes if not recipe.twin]
    if form == "onnx":
        return tuple(plain)
    if form == "tflite":
        return tuple(tflite)
    twins = [one for one in tflite if one.recipe.twin]
    alone = [one for one in tflite if not one.recipe.twin]
    # Behind the recipe that they are the twins of, whose ranges they take.
    static = next((i for i, one in enumerate(plain) if one.recipe.kind == "static"), -1)
    return (*plain[: static + 1], *twins, *plain[static + 1 :], *alone)


def with_neighbour(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """The same, with what is written for LiteRT asked of tflite-runtime too: one file, two rows."""
    return tuple(
        Attempt(one.recipe, (*one.runtimes, TFLITE_RUNTIME))
        if LITERT in one.runtimes and TFLITE_RUNTIME not in one.runtimes
        else one
        for one in attempts
    )


def counterpart(recipe: Recipe, runtime: str) -> str | None:
    """The id of the same model for the other runtime; None where there is no such thing."""
    if not (recipe.twin or recipe.kind == "float"):
        return None
    return variant_id(recipe, LITERT if runtime == ONNXRUNTIME else ONNXRUNTIME)
