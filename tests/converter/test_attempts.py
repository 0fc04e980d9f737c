"""What is tried for which runtime, and how it is named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.attempts import (
    ALONE,
    LITERT,
    ONNXRUNTIME,
    Attempt,
    Format,
    attempts_of,
    counterpart,
    parse_attempt,
    tflite_of,
    variant_id,
)
from converter.recipe import FLOAT32, RecipeNameError, format_recipe, parse
from converter.targets.choose import tflite_attempts_for
from converter.targets.loader import all_targets

_RECIPES = tuple(
    parse(name)
    for name in (
        "dynamic_wi8_af32", "static_wi8_au8_pc_auto_rr_cle", "static_wi8_au8_pc_minmax",
        "mixed_wi8_au8_pc_auto",
    )
)  # fmt: skip
_TWIN = parse("static_wi8_au8_pc_auto_rr_twin")
_PAIRS = ((ONNXRUNTIME, _TWIN), (LITERT, _TWIN), *((LITERT, one) for one in ALONE))
_TFLITE = tflite_of(_PAIRS)
_IDS = re.compile(r"[a-z0-9_]+/[a-z0-9_]{1,120}")


def test_both_runtimes_get_todays_recipes_the_twin_and_litert_its_own() -> None:
    found = attempts_of(_RECIPES, _TFLITE, "both")
    names = [key for one in found for key in one.ids]
    assert names == [
        "onnxruntime/dynamic_wi8_af32",
        "onnxruntime/static_wi8_au8_pc_auto_rr_cle",
        "onnxruntime/static_wi8_au8_pc_auto_rr_twin",
        "ai_edge_litert/static_wi8_au8_pc_auto_rr_twin",
        "onnxruntime/static_wi8_au8_pc_minmax",
        "onnxruntime/mixed_wi8_au8_pc_auto",
        "ai_edge_litert/dynamic_wi8_af32_pc",
        "ai_edge_litert/float_wf16_af16",
        "ai_edge_litert/float_wf32_af32",
    ]
    assert all(_IDS.fullmatch(name) for name in names)


def test_rows_of_one_recipe_are_one_attempt() -> None:
    paired = Attempt(_TWIN, (ONNXRUNTIME, LITERT))
    assert list(_TFLITE) == [paired, *(Attempt(one, (LITERT,)) for one in ALONE)]


def test_onnx_alone_is_what_it_was_and_tflite_alone_what_joins() -> None:
    assert attempts_of(_RECIPES, _TFLITE, "onnx") == tuple(Attempt(one) for one in _RECIPES)
    assert attempts_of((*_RECIPES, _TWIN), _TFLITE, "onnx") == tuple(Attempt(one) for one in _RECIPES)
    assert attempts_of(_RECIPES, _TFLITE, "tflite") == _TFLITE


@pytest.mark.parametrize("form", ["onnx", "tflite", "both"])
def test_no_row_is_there_twice_whatever_the_target(form: Format) -> None:
    for target in all_targets():
        tflite = tflite_of(tflite_attempts_for(target))
        ids = [key for one in attempts_of(target.recipes, tflite, form) for key in one.ids]
        assert len(set(ids)) == len(ids)
        wanted = form != "onnx" and target.tflite is not None
        assert wanted == any(key.startswith("ai_edge") for key in ids)
        assert all(one.recipe.twin or one.recipe in ALONE for one in tflite)


@pytest.mark.parametrize(
    ("name", "form", "runtimes"),
    [
        ("dynamic_wi8_af32_pc", "both", (ONNXRUNTIME,)),
        ("dynamic_wi8_af32_pc", "tflite", (LITERT,)),
        ("ai_edge_litert/dynamic_wi8_af32_pc", "both", (LITERT,)),
        ("ai-edge-litert/dynamic_wi8_af32_pc", "both", (LITERT,)),
        ("onnxruntime/dynamic_wi8_af32_pc", "tflite", (ONNXRUNTIME,)),
        ("static_wi8_au8_pc_auto_twin", "both", (ONNXRUNTIME, LITERT)),
        ("given_wi8_au8_pc", "both", (ONNXRUNTIME, LITERT)),
        ("given_wi8_au8_pc", "onnx", (ONNXRUNTIME,)),
        ("static_wi8_au8_pc_auto_twin", "tflite", (ONNXRUNTIME, LITERT)),
        ("static_wi8_au8_pc_auto_twin", "onnx", (ONNXRUNTIME,)),
        ("ai_edge_litert/static_wi8_au8_pc_auto_twin", "both", (LITERT,)),
    ],
)
def test_a_name_means_these_runtimes(name: str, form: Format, runtimes: tuple[str, ...]) -> None:
    found = parse_attempt(name, form, takes_onnx=True)
    assert found.runtimes == runtimes
    assert format_recipe(found.recipe) == name.rpartition("/")[2]


def test_where_onnx_is_not_taken_a_twin_is_litert_s_alone() -> None:
    found = parse_attempt("static_wi8_ai8_pc_auto_twin", "tflite", takes_onnx=False)
    assert found.runtimes == (LITERT,)


@pytest.mark.parametrize(
    ("name", "form", "takes_onnx", "code"),
    [
        ("tensorrt/dynamic_wi8_af32_pc", "both", True, "runtime_unknown"),
        ("/dynamic_wi8_af32_pc", "both", True, "runtime_unknown"),
        ("ai_edge_litert/static_wi8_au8_pc_auto", "both", True, "recipe_runtime"),
        ("ai_edge_litert/weight_wi4_af32_g32", "both", True, "recipe_runtime"),
        ("static_wi8_au8_pc_auto", "tflite", True, "recipe_runtime"),
        ("ai_edge_litert/float_wf32_af32", "onnx", True, "recipe_runtime"),
        ("onnxruntime/float_wf16_af16", "tflite", False, "recipe_runtime"),
        ("onnxruntime/nonsense", "both", True, "recipe_malformed"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, form: Format, code: str, *, takes_onnx: bool) -> None:
    with pytest.raises(RecipeNameError) as caught:
        parse_attempt(name, form, takes_onnx=takes_onnx)
    assert caught.value.code == code


@given(st.sampled_from([*_RECIPES, *ALONE, _TWIN]), st.sampled_from([ONNXRUNTIME, LITERT]))
def test_a_counterpart_s_counterpart_is_the_row_itself(recipe: object, runtime: str) -> None:
    assert isinstance(recipe, type(FLOAT32))
    other = counterpart(recipe, runtime)
    if other is None:
        assert recipe.kind != "float"
        assert recipe != _TWIN
        return
    back = LITERT if runtime == ONNXRUNTIME else ONNXRUNTIME
    assert other == variant_id(recipe, back)
    assert counterpart(recipe, back) == variant_id(recipe, runtime)
