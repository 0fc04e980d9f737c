"""PURE. What is tried: a recipe, and the runtimes that its model is written for.

For: `Attempt`, its name on the command line, and `attempts_of()`: what joins a target's recipes where TFLite
is wanted. One attempt is one graph with one calibration; each of its runtimes gets a file and a row.
Not for: making them (`converter.making`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, structs

from converter.recipe import FLOAT32, Recipe, RecipeNameError, format_recipe, parse

ONNXRUNTIME = "onnxruntime"
LITERT = "ai-edge-litert"

Format = Literal["onnx", "tflite", "both"]
Edge = Literal["float32", "int8", "uint8"]

FLOAT16 = Recipe(kind="float", weight="f16", activation="f16")
DYNAMIC = Recipe(kind="dynamic", weight="i8", activation="f32", granularity="pc")


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


BASELINE = Attempt(FLOAT32)


def variant_id(recipe: Recipe, runtime: str = ONNXRUNTIME) -> str:
    """`runtime/recipe`, the runtime's dash as an underscore.

    >>> variant_id(FLOAT32, LITERT)
    'ai_edge_litert/float_wf32_af32'
    """
    return f"{runtime.replace('-', '_')}/{format_recipe(recipe)}"


def is_twin(recipe: Recipe) -> bool:
    """Whether its graph keeps what both runtimes need for equal scales."""
    return "twin" in recipe.extras


def parse_attempt(name: str, *, onnx: bool = True) -> Attempt:
    """The attempt of `[RUNTIME/]RECIPE`; without a runtime a twin is one for both, all else for ONNX Runtime.

    Args:
        name: as it was given.
        onnx: whether the target takes ONNX models; where not, LiteRT is meant.

    Raises:
        RecipeNameError: `recipe_malformed`; `runtime_unknown`; `recipe_runtime`: LiteRT has no such recipe.
    """
    runtime, slash, rest = name.rpartition("/")
    recipe = parse(rest)
    if not slash:
        both = (ONNXRUNTIME, LITERT) if is_twin(recipe) else (ONNXRUNTIME,)
        return Attempt(recipe, _possible(recipe, both if onnx else (LITERT,)))
    found = runtime.replace("_", "-")
    if found not in {ONNXRUNTIME, LITERT}:
        raise RecipeNameError(
            "runtime_unknown", f"{name[:80]!r} names no runtime; they are {ONNXRUNTIME} and ai_edge_litert"
        )
    return Attempt(recipe, _possible(recipe, (found,)))


def _possible(recipe: Recipe, runtimes: tuple[str, ...]) -> tuple[str, ...]:
    """The runtimes, once the recipe is one of theirs.

    Raises:
        RecipeNameError: `recipe_runtime`.
    """
    if LITERT in runtimes and not is_twin(recipe) and recipe not in {FLOAT32, FLOAT16, DYNAMIC}:
        known = ", ".join(format_recipe(one) for one in (FLOAT32, FLOAT16, DYNAMIC))
        raise RecipeNameError(
            "recipe_runtime",
            f"{format_recipe(recipe)} cannot be written for LiteRT: its recipes are {known} "
            "and the static ones that end in _twin",
        )
    return runtimes


def attempts_of(recipes: Sequence[Recipe], form: Format, *, twin: Recipe | None) -> tuple[Attempt, ...]:
    """All that is tried, in the order of preference.

    Args:
        recipes: of the target for ONNX Runtime, best first.
        form: what is written. With `tflite` the ONNX rows that remain are the twin's counterpart.
        twin: the recipe of the twin; None where there can be none.
    """
    if form == "onnx":
        return tuple(Attempt(recipe) for recipe in recipes if not is_twin(recipe))
    paired = () if twin is None else (Attempt(twin, (ONNXRUNTIME, LITERT)),)
    alone = tuple(Attempt(recipe, (LITERT,)) for recipe in (DYNAMIC, FLOAT16, FLOAT32))
    if form == "tflite":
        return paired + alone
    plain = [Attempt(recipe) for recipe in recipes if not is_twin(recipe)]
    # Behind the recipe that it is the twin of, so that its ranges are at hand.
    static = next((i for i, one in enumerate(plain) if one.recipe.kind == "static"), -1)
    return (*plain[: static + 1], *paired, *plain[static + 1 :], *alone)


def twin_of(recipe: Recipe) -> Recipe:
    """The recipe of a static one's twin, without repairs of the graph: those are candidates of their own."""
    kept = tuple(one for one in recipe.extras if one in {"sym", "rr"})
    return structs.replace(recipe, extras=(*kept, "twin"))


def counterpart(recipe: Recipe, runtime: str, attempted: Sequence[Attempt]) -> str | None:
    """The id of the row that is the same model for the other runtime; None where there is none."""
    if not (is_twin(recipe) or recipe.kind == "float"):
        return None
    other = LITERT if runtime == ONNXRUNTIME else ONNXRUNTIME
    wanted = variant_id(recipe, other)
    return wanted if any(wanted in one.ids for one in (BASELINE, *attempted)) else None
