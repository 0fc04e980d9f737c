"""The recipe grammar: names and recipes are two forms of one thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.recipe import EXTRAS, FLOAT32, Recipe, RecipeNameError, format_recipe, parse

_INTEGERS = st.sampled_from(["i4", "u4", "i8", "u8", "i16", "u16"])
_FLOATS = st.sampled_from(["f16", "f32"])
_METHODS = st.sampled_from(["minmax", "percentile", "mse", "entropy", "auto"])
_ROUNDING = st.sampled_from(["rtn", "hqq", "gptq", "awq"])
_GRANULARITIES = st.one_of(st.sampled_from(["pt", "pc"]), st.integers(1, 9999).map(lambda n: f"g{n}"))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    kind = draw(st.sampled_from(["float", "static", "dynamic", "weight", "mixed"]))
    floats, integers = draw(_FLOATS), draw(_INTEGERS)
    needs = kind in {"static", "weight"}
    granularity = None if kind == "float" else draw(_GRANULARITIES if needs else st.none() | _GRANULARITIES)
    methods = {"static": _METHODS, "mixed": st.none() | _METHODS, "weight": st.none() | _ROUNDING}
    method = draw(methods.get(kind, st.none()))
    chosen = draw(st.sets(st.sampled_from(EXTRAS)))
    numbers = {"islands": str(draw(st.integers(1, 999))), "prune": str(draw(st.integers(1, 99)))}
    extras = tuple(e + numbers.get(e, "") for e in EXTRAS if e in chosen)
    return Recipe(
        kind=kind,  # type: ignore[arg-type] # sampled from the literals
        weight=floats if kind == "float" else integers,
        activation=draw(_INTEGERS) if kind in {"static", "mixed"} else floats,
        granularity=granularity,
        method=method,  # type: ignore[arg-type] # sampled from the literals
        extras=extras,
    )


@given(recipes())
def test_every_recipe_is_read_back_from_its_name(recipe: Recipe) -> None:
    assert parse(format_recipe(recipe)) == recipe


@given(st.text(alphabet="abcdefilmnoprstuwx0123468_", max_size=40))
def test_a_name_is_refused_or_is_the_only_name_of_its_recipe(name: str) -> None:
    try:
        read_back = format_recipe(parse(name))
    except RecipeNameError:
        read_back = name
    assert read_back == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is no recipe"),
        ("static_wi8_au8_pc_minmax\n", "is no recipe"),
        ("static_wf8_af8_pc_minmax", "floats of 8 bits are made by none"),
        ("static_wi8_au8_pc_awq", "method awq with static"),
        ("weight_wi4_af32_g32_minmax", "method minmax with weight"),
        ("static_wi8_au8_pc_minmax_rr_sym", "in the order"),
        ("static_wi8_au8_pc_minmax_rr_rr", "once each"),
        ("static_wi8_au8_pc", "needs a method"),
        ("static_wi8_au8_minmax", "needs pt, pc or gN"),
        ("static_wi8_af32_pc_minmax", "activations f32"),
        ("float_wi8_af32", "weights i8"),
        ("float_wf32_af32_pc", "no granularity"),
        ("dynamic_wi8_af32_minmax", "has no method"),
        ("weight_wi4_af32_g0", "is no recipe"),
        ("static_wi8_au8_pc_minmax_islands0", "is no recipe"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_reason(name: str, why: str) -> None:
    with pytest.raises(RecipeNameError, match=why) as caught:
        parse(name)
    assert caught.value.code == "recipe_malformed"


def test_what_a_recipe_says() -> None:
    recipe = parse("static_wi8_au8_pc_minmax_sym_rr")
    assert (recipe.per_channel, recipe.symmetric, recipe.reduce_range, recipe.quantized) == (True,) * 4
    assert recipe.precision == "int8"
    assert FLOAT32.precision == "fp32"
    assert not FLOAT32.quantized
    assert parse("weight_wi4_af32_g32").precision == "int4"
