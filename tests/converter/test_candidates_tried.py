"""Which recipes become candidates: a given quantization first, islands only where needed, the rest told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import numpy_helper

from converter.dataset import Samples
from converter.inputs import Options
from converter.passes import clean
from converter.pipeline import Conversion, run
from converter.quantize import quantize
from converter.quantize.given import given_recipe
from converter.recipe import format_recipe, parse
from tests.converter.builders import Workshop, conv_net, images, material_of


def _whole(workshop: Workshop) -> Options:
    return structs.replace(workshop.options(), candidates=())


def _exported(symmetric: bool = False) -> onnx.ModelProto:
    """A model with Q/DQ pairs, as a training framework exports it."""
    cleaned, _ = clean(conv_net())
    array = images(40, seed=8)
    samples = Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))
    recipe = "static_wi8_ai8_pc_minmax_sym" if symmetric else "static_wi8_au8_pc_minmax"
    return quantize(material_of(cleaned, samples), parse(recipe)).model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return run(_whole(Workshop(tmp_path_factory.mktemp("plain"))))


def test_islands_are_not_searched_where_a_candidate_passes_without(plain: Conversion) -> None:
    assert plain.report.unneeded["mixed_wi8_au8_pc_auto"] == "a candidate without islands passes the SLA"
    assert not any(row.recipe.startswith("mixed") for row in plain.report.candidates)
    assert b"without islands passes" in (plain.directory / "report.html").read_bytes()


def test_every_recipe_of_the_target_is_a_row_or_told(plain: Conversion) -> None:
    rows = {row.recipe for row in plain.report.candidates}
    assert {
        "static_wi8_au8_pc_auto",
        "static_wi8_au8_pc_auto_cle_bc",
        "dynamic_wi8_af32_pc",
        "float_wf16_af16",
    } <= rows
    # The model has no large matrix: four bits are no candidates of it.
    assert not any(name.startswith("weight") for name in rows | set(plain.report.unneeded))


def test_each_tensor_alone_is_in_the_report(plain: Conversion) -> None:
    found = plain.report.sensitivity
    assert found
    assert {one["kind"] for one in found} == {"activation", "weight"}
    effects = [one["effect_db"] for one in found]
    assert effects == sorted(effects, key=lambda value: -float(str(value)))
    assert {"w3", "f"} <= {one["tensor"] for one in found}


def test_islands_are_searched_where_nothing_passes(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.sla.write_text("agreement: {min: 0.5}\nsize_bytes_max: 10\n")
    report = run(_whole(workshop)).report
    assert {row.status for row in report.candidates} == {"fail"}
    # The search ran and found that the part of the SLA that islands could meet is met without any.
    assert "no islands" in report.unneeded["mixed_wi8_au8_pc_auto"]


def test_islands_that_are_needed_are_a_row_with_their_number(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, _wild())
    workshop.sla.write_text("agreement: {min: 0.97}\n")
    options = structs.replace(
        workshop.options(), candidates=("static_wi8_au8_pc_minmax", "mixed_wi8_au8_pc_minmax")
    )
    report = run(options).report
    rows = {row.recipe: row for row in report.candidates}
    assert rows["static_wi8_au8_pc_minmax"].status == "fail"
    (mixed,) = (row for name, row in rows.items() if name.startswith("mixed"))
    assert mixed.recipe.startswith("mixed_wi8_au8_pc_minmax_islands")
    assert mixed.status == "pass"
    assert report.unneeded == {}


def _wild() -> onnx.ModelProto:
    """One channel of the first layer 3,000 times louder, made good by the next one's weights."""
    made = conv_net()
    for tensor in made.graph.initializer:
        if tensor.name in {"w1", "b1", "w2"}:
            array = numpy_helper.to_array(tensor).copy()
            array[0] = array[0] / 3000 if tensor.name == "w2" else array[0] * 3000
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return made


@pytest.mark.parametrize(("symmetric", "name"), [(False, "given_wi8_au8_pc"), (True, "given_wi8_ai8_pc_sym")])
def test_a_given_quantization_is_named_by_what_it_holds(name: str, *, symmetric: bool) -> None:
    found = given_recipe(_exported(symmetric))
    assert found is not None
    assert format_recipe(found) == name
    assert parse(name) == found


def test_a_given_quantization_is_taken_as_it_is_and_measured(tmp_path: Path) -> None:
    made = _exported()
    conversion = run(_whole(Workshop(tmp_path, made)))
    rows = {row.recipe: row for row in conversion.report.candidates if row.runtime == "onnxruntime"}
    given = rows["given_wi8_au8_pc"]
    assert given.status == "pass"
    assert given.sha256 == hashlib.sha256(made.SerializeToString()).hexdigest()
    assert any("taken as given" in words for words in given.decisions)
    assert given.fusion is not None
    assert given.fusion.integer >= 3
    assert rows["float_wf32_af32"].status == "pass"
    assert any("Q" in words for words in conversion.report.baseline.decisions)


def test_a_given_quantization_that_breaks_the_targets_rules_says_so(tmp_path: Path) -> None:
    options = structs.replace(_whole(Workshop(tmp_path, _exported())), target="rpi5")
    rows = {row.recipe: row for row in run(options).report.candidates if row.runtime == "onnxruntime"}
    assert any(
        "activations of type" in words or "activation" in words
        for words in rows["given_wi8_au8_pc"].decisions
    )


def test_asked_for_by_name_without_pairs_it_is_told(tmp_path: Path) -> None:
    options = structs.replace(
        _whole(Workshop(tmp_path)), candidates=("given_wi8_au8_pc", "static_wi8_au8_pc_minmax")
    )
    report = run(options).report
    assert "came without Q/DQ pairs" in report.unneeded["given_wi8_au8_pc"]
    assert (
        msgspec.json.decode((options.output / "candidates.json").read_bytes())["unneeded"] == report.unneeded
    )
    assert np.isfinite(report.baseline.accuracy or np.nan)


def test_islands_have_sixteen_bits_where_the_target_lists_kernels(tmp_path: Path) -> None:
    made = _wild()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    workshop = Workshop(tmp_path, _wild())
    workshop.model.write_bytes(made.SerializeToString())
    workshop.sla.write_text("agreement: {min: 0.97}\n")
    options = structs.replace(workshop.options("qnn_htp"), candidates=("mixed_wi8_au8_pc_minmax",))
    report = run(options).report
    (mixed,) = (row for row in report.candidates if row.recipe.startswith("mixed"))
    assert mixed.status == "pass"
    assert any("16-bit islands" in words for words in mixed.decisions)
    variant = (options.output / "variants" / mixed.recipe / "model.onnx").read_bytes()
    kinds = {t.data_type for t in onnx.load_from_string(variant).graph.initializer}
    assert onnx.TensorProto.UINT16 in kinds


def test_rows_stand_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    asked = ("static_wi8_au8_pt_minmax", "dynamic_wi8_af32", "static_wi8_au8_pc_minmax")
    options = structs.replace(_whole(Workshop(tmp_path)), candidates=asked)
    assert tuple(row.recipe for row in run(options).report.candidates[1:]) == asked


def test_a_given_quantization_is_written_as_tflite_where_its_numbers_are_tflite_s(tmp_path: Path) -> None:
    """Made under a twin's rules elsewhere and exported: the same scales in both files."""
    cleaned, _ = clean(conv_net())
    array = images(40, seed=8)
    samples = Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))
    made = quantize(material_of(cleaned, samples), parse("static_wi8_au8_pc_minmax_twin")).model
    workshop = Workshop(tmp_path, made)
    options = structs.replace(workshop.options(), candidates=("given_wi8_au8_pc",))
    report = run(options).report
    rows = {row.id: row for row in report.candidates}
    found = rows["ai_edge_litert/given_wi8_au8_pc"]
    assert found.status == "pass", found.reason
    assert found.twin_of == "onnxruntime/given_wi8_au8_pc"
    assert report.parity[found.id]["is_twin"] is True
    assert found.parity is not None
    assert 'id="twin"' in (options.output / "report.html").read_text()


def test_a_given_quantization_that_tflite_cannot_say_is_a_row_with_its_reason(tmp_path: Path) -> None:
    rows = {row.id: row for row in run(_whole(Workshop(tmp_path, _exported()))).report.candidates}
    found = rows["ai_edge_litert/given_wi8_au8_pc"]
    assert found.status == "error"
    assert "no_twin" in found.reason
    assert rows["onnxruntime/given_wi8_au8_pc"].status == "pass"
