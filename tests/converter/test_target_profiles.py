"""All profiles of the draft are here, impossible wishes are refused by name, and recipes suit the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from converter.errors import InputError
from converter.pipeline import run
from converter.quantize.operators import CPU
from converter.quantize.placement import placement_of
from converter.recipe import format_recipe, parse
from converter.targets.choose import ModelFacts, recipes_for, tflite_attempts_for
from converter.targets.detect import Machine, detect_accelerators, of_class
from converter.targets.docs import page
from converter.targets.loader import (
    Rule,
    Target,
    all_targets,
    broken_rule,
    find_target,
    forbidden,
    usable_target,
)
from converter.targets.show import describe, targets_table
from tests.converter.builders import Workshop, conv_net
from tests.device_trees import build

ROOT = Path(__file__).parents[2]

DRAFT = {
    "x86_avx2", "x86_vnni", "arm64_v8_0", "arm64_dotprod", "arm64_i8mm", "jetson_gpu_trt", "jetson_dla",
    "qnn_htp", "coreml", "coral_edgetpu", "vip_npu_imx8mp", "ethos_u65_u55", "rk3588_rknpu2", "hailo8",
    "imx500_pi_ai_camera", "openvino_npu",
}  # fmt: skip


def test_the_profiles_of_the_draft_are_here() -> None:
    assert {target.id for target in all_targets()} == DRAFT


@pytest.mark.parametrize(
    ("name", "recipe", "edge", "delegate"),
    [("coral", "static_wi8_ai8_pc_auto_twin", "int8", "libedgetpu.so.1"),
     ("ethos-u", "static_wi8_ai8_pc_auto_twin", "int8", "/usr/lib/libethosu_delegate.so"),
     ("stm32mp2", "static_wi8_ai8_pt_auto_twin", "int8", "/usr/lib/libvx_delegate.so"),
     ("imx8mp", "static_wi8_ai8_pt_auto_twin", "int8", "/usr/lib/libvx_delegate.so")],
)  # fmt: skip
def test_accelerators_of_tflite_files_have_twins_and_a_delegate(
    name: str, recipe: str, edge: str, delegate: str
) -> None:
    target = usable_target(name)
    assert target.rules.recipes.value == (recipe,)
    assert target.tflite is not None
    assert target.tflite.edge.value == edge
    assert target.tflite.delegate.value == delegate
    assert tflite_attempts_for(target) == (
        ("ai-edge-litert", parse(recipe)),
        ("ai-edge-litert", parse("float_wf32_af32")),
    )
    assert placement_of(target.rules, twin=True).whole


@pytest.mark.parametrize(
    ("name", "twin"),
    [("x86_avx2", "static_wi8_au8_pc_auto_rr_twin"), ("x86_vnni", "static_wi8_au8_pc_auto_twin"),
     ("rpi4", "static_wi8_ai8_pc_auto_twin"), ("rpi5", "static_wi8_ai8_pc_auto_twin"),
     ("arm64_i8mm", "static_wi8_ai8_pc_auto_twin")],
)  # fmt: skip
def test_on_a_cpu_one_graph_is_written_for_both_runtimes(name: str, twin: str) -> None:
    found = [(runtime, format_recipe(recipe)) for runtime, recipe in tflite_attempts_for(find_target(name))]
    assert found == [
        ("onnxruntime", twin),
        ("ai-edge-litert", twin),
        ("ai-edge-litert", "dynamic_wi8_af32_pc"),
        ("ai-edge-litert", "float_wf16_af16"),
        ("ai-edge-litert", "float_wf32_af32"),
    ]


def test_others_have_no_tflite_files() -> None:
    assert tflite_attempts_for(find_target("orin")) == ()


def test_what_no_model_can_be_made_for_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="model-compression-toolkit") as caught:
        usable_target("imx500")
    assert caught.value.code == "target_refused"


def test_a_usable_target_is_itself() -> None:
    assert usable_target("orin").id == "jetson_gpu_trt"


@pytest.mark.parametrize(
    ("name", "word"), [("jetson_nano", "Maxwell"), ("Jetson-Nano", "arm64_v8_0"), ("hailo10", "hailo8")]
)
def test_the_impossible_is_named(name: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        find_target(name)
    assert caught.value.code == "target_impossible"


def test_a_misspelt_name_finds_its_neighbour() -> None:
    with pytest.raises(InputError, match=r"did you mean rpi[45]"):
        find_target("rpi6")


@pytest.mark.parametrize(
    ("target", "recipe", "fault"),
    [
        ("x86_vnni", "static_wi8_au16_pc_minmax", "u16 activations, for which this target lists no kernels"),
        ("qnn_htp", "static_wi8_au16_pc_minmax", None),
        ("qnn_htp", "static_wi8_ai16_pc_minmax", "i16 activations"),
        ("jetson_gpu_trt", "static_wi8_ai8_pc_minmax", "asymmetric"),
        ("jetson_gpu_trt", "static_wi8_ai8_pc_minmax_sym", None),
        ("vip_npu_imx8mp", "static_wu8_au8_pc_minmax", "per channel"),
        ("arm64_dotprod", "static_wu8_ai8_pc_minmax", "weights other than i8"),
        ("x86_vnni", "weight_wi4_af32_g32_awq", None),
        ("qnn_htp", "weight_wi4_af32_g32_awq", "4-bit weights, which are not read there"),
        ("qnn_htp", "static_wu8_au8_pt_minmax", None),
        ("x86_vnni", "mixed_wi8_ai8_pc_auto", "activations other than u8"),
    ],
)
def test_recipes_against_rules(target: str, recipe: str, fault: str | None) -> None:
    found = forbidden(find_target(target), parse(recipe))
    assert (found is None) if fault is None else (found is not None and fault in found)


@pytest.mark.parametrize(
    ("weights", "matrices", "four_bits"),
    [(90_000_000, 89_000_000, True), (18_000_000, 5_000_000, False), (400_000, 400_000, False),
     (2_000_000, 1_000_000, True), (2_000_000, 999_999, False)],
)  # fmt: skip
def test_four_bits_are_tried_where_matrices_are_most_of_it(
    weights: int, matrices: int, *, four_bits: bool
) -> None:
    facts = ModelFacts(weight_bytes=weights, matrix_bytes=matrices)
    kinds = {recipe.kind for recipe in recipes_for(find_target("x86_vnni"), facts)}
    assert ("weight" in kinds) is four_bits
    assert {"static", "mixed", "dynamic", "float"} <= kinds


def _tflite_recipe(target: Target, name: str) -> Target:
    assert target.tflite is not None
    rule: Rule[tuple[str, ...]] = Rule(value=(name,), confidence="V", source="a test")
    return structs.replace(target, tflite=structs.replace(target.tflite, recipes=rule))


def test_what_nothing_here_writes_is_a_fault_unless_it_is_refused() -> None:
    coral, sony = find_target("coral"), find_target("imx500")
    assert "it takes TFLite files and does not say which" in (
        broken_rule(structs.replace(coral, tflite=None)) or ""
    )
    assert "nothing here writes such models" in (broken_rule(structs.replace(sony, refused=None)) or "")
    assert "only a twin's are" in (broken_rule(_tflite_recipe(coral, "static_wi8_ai8_pc_auto")) or "")
    assert "TFLite files do not know: weight" in (
        broken_rule(_tflite_recipe(find_target("rpi5"), "weight_wi4_af32_g32_rtn")) or ""
    )
    assert "per channel" in (
        broken_rule(_tflite_recipe(find_target("imx8mp"), "static_wi8_ai8_pc_auto_twin")) or ""
    )
    assert broken_rule(_tflite_recipe(coral, "dynamic_wi8_af32_pc")) is None


def test_opsets_that_exclude_each_other_are_a_fault() -> None:
    upside = structs.replace(
        find_target("rpi5"),
        rules=structs.replace(
            find_target("rpi5").rules, opset_min=Rule(value=22, confidence="V", source="a test")
        ),
    )
    assert broken_rule(upside) == "opset_min is above opset_max"


def test_every_accelerator_says_how_it_is_found_and_what_stands_between() -> None:
    for target in all_targets():
        if target.accelerated:
            assert target.detect is not None
            assert target.detect.value.any, target.id
        if target.compiler is not None:
            assert "not compiled, not run" in (target.not_compiled or "")


def test_the_table_says_which_one_this_machine_is() -> None:
    machine = Machine(arch="aarch64", features=frozenset({"asimddp"}), cpu="one")
    rows = {row.id: row for row in targets_table(machine)}
    assert set(rows) == DRAFT
    assert [row.id for row in rows.values() if row.this_host] == ["arm64_dotprod"]
    assert rows["jetson_gpu_trt"].types == "i8 x i8 sym"
    assert not rows["jetson_gpu_trt"].compiled
    assert rows["coral_edgetpu"].model == "TFLite"
    assert rows["coral_edgetpu"].runtime == "libedgetpu.so.1"
    assert rows["x86_vnni"].model == "ONNX and TFLite"
    assert rows["qnn_htp"].model == "ONNX"
    assert rows["imx500_pi_ai_camera"].model == "refused"
    assert (rows["ethos_u65_u55"].confidence, rows["coral_edgetpu"].confidence) == ("S", "M")
    assert rows["rk3588_rknpu2"].model == "ONNX FP32 for its compiler"
    assert rows["hailo8"].confidence == "M"
    x86 = Machine(arch="x86_64", features=frozenset({"avx2", "avx512_vnni"}), cpu="one")
    assert [row.id for row in targets_table(x86) if row.this_host] == ["x86_vnni"]
    assert all(row.this_host is None for row in targets_table())


def test_one_target_whole() -> None:
    whole = describe(find_target("qnn_htp"))
    assert whole["provider"] == "QNNExecutionProvider"
    assert str(whole["not_compiled"]).startswith("not compiled, not run")


def test_the_page_of_targets_is_the_one_that_the_data_gives() -> None:
    assert (ROOT / "docs" / "targets.md").read_text(encoding="utf-8") == page(), (
        "run python -m converter.targets.docs > docs/targets.md"
    )


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ({"dev/apex_0": b""}, ("coral_edgetpu",)),
        ({"sys/bus/usb/devices/1-1/idVendor": b"18d1\n", "sys/bus/usb/devices/1-1/idProduct": b"9302\n"},
         ("coral_edgetpu",)),
        ({"sys/bus/pci/devices/0/vendor": b"0x1e60\n", "sys/bus/pci/devices/0/device": b"0x2864\n"},
         ("hailo8",)),
        ({"proc/device-tree/compatible": b"radxa,rock-5b\0rockchip,rk3588\0"}, ("rk3588_rknpu2",)),
        ({"sys/bus/usb/devices/1-1/idVendor": b"18d1\n"}, ()),
        ({}, ()),
    ],
)  # fmt: skip
def test_accelerators_give_themselves_away(
    tmp_path: Path, signs: dict[str, bytes], expected: tuple[str, ...]
) -> None:
    for name, content in signs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert detect_accelerators(tmp_path) == expected


def test_a_jetson_of_the_sample_trees_is_found_by_its_board(tmp_path: Path) -> None:
    build(tmp_path, "jetson_orin_nano")
    assert detect_accelerators(tmp_path) == ()
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3767-0005\0nvidia,tegra234\0")
    assert detect_accelerators(tmp_path) == ("jetson_gpu_trt",)


def test_no_machine_speaks_for_an_accelerator() -> None:
    """What runs here runs on this machine's CPU, whatever accelerator a target names."""
    features = frozenset({"avx2", "avx512_vnni", "asimddp", "i8mm"})
    for arch in ("x86_64", "aarch64"):
        machine = Machine(arch=arch, features=features, cpu="one")
        speaks = {target.id for target in all_targets() if of_class(machine, target)}
        assert speaks <= {"x86_vnni", "arm64_dotprod", "arm64_i8mm"}
        assert speaks


def test_every_source_can_be_read_by_whoever_has_the_program() -> None:
    for target in all_targets():
        text = str(describe(target))
        assert "FACTS.md" not in text, target.id
        assert "profile draft" not in text, target.id


def test_rules_become_the_place_of_integers() -> None:
    for target in all_targets():
        placement = placement_of(target.rules)
        if not target.accelerated:
            assert placement == CPU, target.id
    orin, dla, qnn = (placement_of(find_target(name).rules) for name in ("orin", "dla", "qnn"))
    assert (orin.biases, orin.fused_activations, orin.whole) == (False, True, False)
    assert orin.operators == CPU.operators - {"Softmax"}
    assert (dla.whole, qnn.whole, qnn.biases) == (True, True, True)
    assert "Softmax" not in dla.operators
    assert "Gather" in qnn.operators
    assert "Gather" not in dla.operators


@pytest.mark.parametrize(
    ("name", "told"),
    [("qnn_htp", "nothing on the CPU"), ("orin", "a whole Q/DQ pair"), ("hailo8", "Dataflow Compiler"),
     ("openvino_npu", "OpenVINO compiles"), ("rk3588", "rknn-toolkit2"), ("coreml", "Core ML")],
)  # fmt: skip
def test_an_accelerator_gets_its_input_model_and_the_truth(tmp_path: Path, name: str, told: str) -> None:
    """Latency of this host never decides for it, and every row says that nothing was compiled."""
    shop = Workshop(tmp_path)
    shop.model.write_bytes(conv_net(batch=1).SerializeToString())
    conversion = run(structs.replace(shop.options("x86_vnni"), target=name, candidates=()))
    report = conversion.report
    for row in report.candidates:
        assert row.status != "error", row.reason
        assert row.latency_scope != "target"
        assert any(word.startswith("not compiled, not run") for word in row.decisions)
    assert any(told in word for row in report.candidates for word in row.decisions)
    assert conversion.manifest is not None


def test_on_a_class_of_cpu_the_row_keeps_what_its_own_audit_predicts(tmp_path: Path) -> None:
    report = run(Workshop(tmp_path).options("x86_vnni")).report
    assert {row.fallback_predicted for row in report.candidates if row.precision == "int8"} == {False}
    assert not any("not compiled" in word for row in report.candidates for word in row.decisions)


def test_an_open_batch_is_refused_where_shapes_must_be_fixed(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    with pytest.raises(InputError) as caught:
        run(structs.replace(shop.options("x86_vnni"), target="qnn_htp", candidates=()))
    assert caught.value.code == "target_static_shapes"
    assert not shop.output.exists()


def test_on_a_cpu_16_bit_activations_are_refused_by_name(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    asked = structs.replace(shop.options("x86_vnni"), candidates=("static_wi8_au16_pc_minmax",))
    with pytest.raises(InputError, match="lists no kernels") as caught:
        run(asked)
    assert caught.value.code == "candidate_forbidden"
