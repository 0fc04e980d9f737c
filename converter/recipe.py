"""PURE. Recipes and their naming grammar.

For: naming a way to quantize so that the name alone says what was done, and reading such a name back.
Not for: doing it (`converter.quantize`), or deciding which recipes suit a target (`converter.targets`).

    RECIPE      = KIND "_w" TYPE "_a" TYPE [ "_" GRANULARITY ] [ "_" METHOD ] { "_" EXTRA }
    KIND        = "float" | "static" | "dynamic" | "weight" | "mixed" | "given"
    TYPE        = ( "i" | "u" ) ( "4" | "8" | "16" )  |  "f" ( "16" | "32" )
    GRANULARITY = "pt" | "pc" | "g" NUMBER          of the weights: per tensor, per channel, per group
    METHOD      = "minmax" | "average" | "percentile" | "mse" | "entropy" | "auto"      of activations' ranges
                | "rtn" | "hqq" | "gptq" | "awq"                            of the weights' rounding
    EXTRA       = "sym" | "rr" | "qop" | "cle" | "bc" | "islands" NUMBER | "prune" NUMBER | "twin"
                  each once, in this order

Extras: symmetric activations, reduced range (7-bit weights), QOperator instead of QDQ format,
cross-layer equalization, bias correction, N float islands, N percent of each weight set to zero first,
scales that TFLite's kernels take too, so that one graph can be written in both formats.

What each kind needs: `float` has float types and neither granularity nor method; `dynamic` has integer
weights and float activations and no method (ranges are found at run time); `weight` the same, needs a
granularity and may name a method of rounding (`rtn` where none is said); `static` has integer types, a
granularity and a method of ranges; `mixed` has integer types, the rest is free; `given` (the model came with
its Q/DQ pairs) has integer types, a granularity and no method.

>>> parse("static_wi8_au8_pc_minmax_rr").extras
('rr',)
>>> format_recipe(parse("weight_wi4_af32_g32"))
'weight_wi4_af32_g32'
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, cast, get_args

from msgspec import Struct

from wire.errors import ShallopError

Kind = Literal["float", "static", "dynamic", "weight", "mixed", "given"]
Method = Literal["minmax", "average", "percentile", "mse", "entropy", "auto", "rtn", "hqq", "gptq", "awq"]

EXTRAS = ("sym", "rr", "qop", "cle", "bc", "islands", "prune", "twin")
"""In the order in which they stand; `islands` and `prune` carry a number."""

_GRAMMAR = re.compile(
    rf"(?P<kind>{'|'.join(get_args(Kind))})"
    r"_w(?P<weight>[iu](?:4|8|16)|f(?:16|32))_a(?P<activation>[iu](?:4|8|16)|f(?:16|32))"
    r"(?:_(?P<granularity>pt|pc|g[1-9][0-9]{0,3}))?"
    rf"(?:_(?P<method>{'|'.join(get_args(Method))}))?"
    r"(?P<extras>(?:_(?:sym|rr|qop|cle|bc|islands[1-9][0-9]{0,2}|prune[1-9][0-9]?|twin))*)",
    re.ASCII,
)


class RecipeNameError(ShallopError):
    """A name is not of the grammar, or its parts contradict each other."""


class Recipe(Struct, frozen=True, kw_only=True):
    """One way to quantize; see the module's docstring for what each part means."""

    kind: Kind
    weight: str
    activation: str
    granularity: str | None = None
    method: Method | None = None
    extras: tuple[str, ...] = ()

    @property
    def per_channel(self) -> bool:
        """Whether each output channel of a weight has a scale of its own."""
        return self.granularity == "pc"

    @property
    def reduce_range(self) -> bool:
        """Whether weights keep to 7 bits, so that 16-bit sums of products cannot saturate."""
        return "rr" in self.extras

    @property
    def symmetric(self) -> bool:
        """Whether activations have their zero point in the middle."""
        return "sym" in self.extras

    @property
    def twin(self) -> bool:
        """Whether the graph keeps to TFLite's rules, so that both formats can hold it with equal scales."""
        return "twin" in self.extras

    @property
    def pruned_percent(self) -> int:
        """Percent of each weight that is set to zero first; 0 for none."""
        return next((int(one.removeprefix("prune")) for one in self.extras if one.startswith("prune")), 0)

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.weight[0] != "f"

    @property
    def precision(self) -> str:
        """Short word for people: `fp32`, `fp16`, `int8`, `int4`."""
        return f"{'int' if self.quantized else 'fp'}{self.weight[1:]}"


FLOAT32 = Recipe(kind="float", weight="f32", activation="f32")
"""The baseline."""


def format_recipe(recipe: Recipe) -> str:
    """The recipe's name."""
    parts = [recipe.kind, f"w{recipe.weight}", f"a{recipe.activation}"]
    parts += [part for part in (recipe.granularity, recipe.method) if part is not None]
    return "_".join([*parts, *recipe.extras])


def parse(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RecipeNameError: `recipe_malformed`: not of the grammar, extras twice or out of order, or parts
            that contradict each other.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        said = "floats of 8 bits are made by none (they need a GPU newer than Orin's)"
        hint = said if "f8" in name else "see converter.recipe"
        raise RecipeNameError(
            "recipe_malformed",
            f"{name[:80]!r} is no recipe; one looks like static_wi8_au8_pc_minmax; {hint}",
        )
    extras = tuple(word for word in match["extras"].split("_") if word)
    places = [EXTRAS.index(word.rstrip("0123456789")) for word in extras]
    if any(after <= here for here, after in pairwise(places)):
        raise RecipeNameError(
            "recipe_malformed", f"extras of {name!r} stand once each, in the order {', '.join(EXTRAS)}"
        )
    recipe = Recipe(
        kind=cast("Kind", match["kind"]),
        weight=match["weight"],
        activation=match["activation"],
        granularity=match["granularity"],
        method=cast("Method | None", match["method"]),
        extras=extras,
    )
    contradiction = _contradiction(recipe)
    if contradiction is not None:
        raise RecipeNameError("recipe_malformed", f"{name!r} contradicts itself: {contradiction}")
    return recipe


_WEIGHT_IS_FLOAT: dict[Kind, bool] = {
    "float": True, "static": False, "dynamic": False, "weight": False, "mixed": False,
    "given": False,
}  # fmt: skip
_ACTIVATION_IS_FLOAT: dict[Kind, bool] = {
    "float": True, "static": False, "dynamic": True, "weight": True, "mixed": False,
    "given": False,
}  # fmt: skip
_ROUNDING: frozenset[Method] = frozenset({"rtn", "hqq", "gptq", "awq"})
_NEEDS_GRANULARITY: frozenset[Kind] = frozenset({"static", "weight", "given"})


def _contradiction(recipe: Recipe) -> str | None:
    """What does not fit together, in words, or None."""
    kind = recipe.kind
    weight_fits = (recipe.weight[0] == "f") is _WEIGHT_IS_FLOAT[kind]
    activation_fits = (recipe.activation[0] == "f") is _ACTIVATION_IS_FLOAT[kind]
    rules = (
        (weight_fits, f"weights {recipe.weight} with {kind}"),
        (activation_fits, f"activations {recipe.activation} with {kind}"),
        (kind not in _NEEDS_GRANULARITY or recipe.granularity is not None, f"{kind} needs pt, pc or gN"),
        (kind != "float" or recipe.granularity is None, "float has no granularity"),
        (kind != "static" or recipe.method is not None, "static needs a method"),
        (kind in {"static", "mixed", "weight"} or recipe.method is None, f"{kind} has no method"),
        (
            recipe.method is None or (recipe.method in _ROUNDING) is (kind == "weight"),
            f"method {recipe.method} with {kind}",
        ),
    )
    return next((words for holds, words in rules if not holds), None)
