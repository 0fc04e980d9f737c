"""A whole conversion of small real models, from Python."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import helper

from converter import convert
from converter.inputs import Inputs, default_name, read_inputs, utc_now
from converter.measured import saturation
from converter.pipeline import Conversion, run
from converter.quantize import SCHEMES, Made
from converter.recipe import parse
from converter.runtime import open_session
from converter.targets.detect import Machine
from converter.targets.loader import find_target
from tests.converter.builders import Workshop, batch_norm_net, conv_net, model, weights
from wire.bundle import MANIFEST_BYTES_MAX, Manifest, check, fp32_key, host_key, input_key
from wire.codec import decode

_FLAGS = {"x86_vnni": "avx2 avx512_vnni", "x86_avx2": "avx2"}


def _host(folder: Path, target: str) -> Path:
    """A /proc of a machine of that class, so that tests do not depend on where they run."""
    (folder / "root" / "proc").mkdir(parents=True)
    (folder / "root" / "proc" / "cpuinfo").write_text(f"model name\t: test\nflags\t\t: {_FLAGS[target]}\n")
    return folder / "root"


def _run(shop: Workshop, target: str = "x86_vnni", host: str = "x86_vnni") -> Conversion:
    return run(structs.replace(shop.options(target), root=_host(shop.folder, host)))


def test_the_bundle_is_whole(workshop: Workshop) -> None:
    conversion = _run(workshop)
    content = (workshop.output / "manifest.json").read_bytes()
    manifest = check(decode(content, Manifest, MANIFEST_BYTES_MAX))
    assert manifest == conversion.manifest
    assert manifest.model == "tiny-net"
    listed = {"manifest.json", "candidates.json"}
    for file in manifest.all_files():
        whole = (workshop.output / file.path).read_bytes()
        listed.add(file.path)
        assert hashlib.sha256(whole).hexdigest() == file.sha256
        start = 0
        for chunk in file.chunks:
            piece = whole[start : start + chunk.size_bytes]
            assert hashlib.sha256(piece).hexdigest() == chunk.sha256
            start += chunk.size_bytes
    there = {str(p.relative_to(workshop.output)) for p in workshop.output.rglob("*") if p.is_file()}
    assert there == listed
    assert manifest.provenance.source_model_sha256 == hashlib.sha256(workshop.model.read_bytes()).hexdigest()
    assert manifest.provenance.sla_sha256 == hashlib.sha256(workshop.sla.read_bytes()).hexdigest()


def test_shards_hold_what_each_variant_really_answers(workshop: Workshop) -> None:
    manifest = _run(workshop, "rpi5").manifest
    assert manifest is not None
    assert [variant.precision for variant in manifest.variants] == ["int8", "int8", "fp32"]
    with np.load(workshop.output / manifest.validation[0].file.path, allow_pickle=False) as shard:
        arrays = dict(shard)
    for variant in manifest.variants:
        emulated = {"session.qdqisint8allowed": "1"} if variant.precision == "int8" else {}
        session = open_session((workshop.output / variant.model_path).read_bytes(), config=emulated)
        image = arrays[input_key("image")]
        found = np.concatenate([session.run(None, {"image": image[i : i + 1]})[0] for i in range(len(image))])
        np.testing.assert_array_equal(found, arrays[host_key(variant.id, "logits")])
    fp32 = manifest.variants[-1]
    np.testing.assert_array_equal(arrays[fp32_key("logits")], arrays[host_key(fp32.id, "logits")])


def test_two_runs_give_the_same_models_and_shards(workshop: Workshop) -> None:
    first = _run(workshop, "rpi4").manifest
    again = run(
        structs.replace(
            workshop.options("rpi4"), root=workshop.folder / "root", output=workshop.folder / "b2"
        )
    ).manifest
    assert first is not None
    assert again is not None
    assert [file.sha256 for file in first.all_files()] == [file.sha256 for file in again.all_files()]


def test_on_a_host_of_the_class_latency_is_measured_and_in_the_manifest(workshop: Workshop) -> None:
    """No limit on latency and no claim which is faster: only that figures and scope are there."""
    report = _run(workshop).report
    for row in report.candidates:
        assert row.latency_scope == "target"
        assert row.latency_ms_p95 is not None
        assert row.latency_ratio is not None
        assert row.threads == 1
        assert row.fusion is not None
    assert report.baseline.latency_ratio == 1.0


def test_for_another_class_latency_is_labelled_and_deferred(workshop: Workshop) -> None:
    workshop.sla.write_text("latency_ms_p95_max: 0.000001\nmemory_bytes_max: 1\nenergy_mj_max: 0.1\n")
    conversion = _run(workshop, "x86_avx2")
    assert conversion.passed
    for row in conversion.report.candidates:
        assert row.deferred == ("latency_ms_p95", "energy_mj", "memory_bytes")
        assert row.latency_scope == "host"
    manifest = conversion.manifest
    assert manifest is not None
    assert all(variant.host.latency is None for variant in manifest.variants)
    assert manifest.variants[0].recipe == "static_wi8_au8_pc_minmax_rr"
    assert manifest.variants[0].session_config == {}


def test_on_a_host_of_the_class_a_latency_limit_decides(workshop: Workshop) -> None:
    workshop.sla.write_text("latency_ms_p95_max: 0.000001\n")
    conversion = _run(workshop)
    assert not conversion.passed
    assert all("latency" in row.reason for row in conversion.report.candidates)


def test_fp32_is_a_variant_only_where_it_passes_or_is_allowed(workshop: Workshop) -> None:
    padded = conv_net()
    rng = np.random.default_rng(3)
    padded.graph.initializer.append(weights(rng, "w4", 256, 4))
    padded.graph.initializer.append(weights(rng, "w5", 4, 256))
    last = padded.graph.node[-1]
    last.output[0] = "before"
    padded.graph.node.append(helper.make_node("Gemm", ["before", "w4"], ["wide"], transB=1))
    padded.graph.node.append(helper.make_node("Gemm", ["wide", "w5"], ["logits"], transB=1))
    shop = Workshop(_made(workshop.folder / "padded"), padded)
    limit = len(padded.SerializeToString()) - 1
    shop.sla.write_text(f"size_bytes_max: {limit}\nobjective: size\n")
    manifest = _run(shop).manifest
    assert manifest is not None
    assert [variant.precision for variant in manifest.variants] == ["int8"]
    shop.sla.write_text(f"size_bytes_max: {limit}\nobjective: size\nfallback: fp32_unbounded\n")
    again = run(structs.replace(shop.options(), root=shop.folder / "root", force=True)).manifest
    assert again is not None
    assert [variant.precision for variant in again.variants] == ["int8", "fp32"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_candidate_that_raises_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object) -> Made:
        raise ValueError("The truth value\nof an array")

    monkeypatch.setattr("converter.quantize.SCHEMES", {**SCHEMES, "dynamic": raises})
    rows = {row.recipe: row for row in _run(Workshop(tmp_path)).report.candidates}
    error = rows["dynamic_wi8_af32"]
    assert error.status == "error"
    assert error.reason == "ValueError: The truth value of an array"
    assert (error.accuracy, error.size_bytes, error.latency_ms_p50, error.fusion) == (None,) * 4
    assert rows["static_wi8_au8_pt_minmax"].status == "pass"


def test_a_gemm_bias_of_two_axes_is_quantized_too(tmp_path: Path) -> None:
    """Shape [1, 4] is valid; onnxruntime's own per-channel quantizer raises on it (FACTS.md, trap 3)."""
    made = conv_net()
    bias = next(tensor for tensor in made.graph.initializer if tensor.name == "b3")
    bias.dims[:] = [1, 4]
    onnx.checker.check_model(made)
    rows = {row.recipe: row for row in _run(Workshop(tmp_path, made)).report.candidates}
    assert rows["static_wi8_au8_pc_minmax"].status == "pass"
    assert rows["static_wi8_au8_pc_minmax"].int8_fraction == 1.0


def test_cleaning_is_recorded_and_the_bundle_carries_the_cleaned_model(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, batch_norm_net())
    conversion = _run(shop, "rpi4")
    assert any(text.startswith("fold_batch_norm") for text in conversion.report.baseline.decisions)
    assert conversion.manifest is not None
    path = shop.output / conversion.manifest.variants[-1].model_path
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, conv_net(opset=11))
    report = _run(shop, "rpi4").report
    assert "opset converted from 11 to 13" in report.baseline.decisions
    assert [row.status for row in report.candidates] == ["pass"] * 4


def test_a_model_without_anything_to_quantize_still_converts(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Concat", ["f", "f", "f", "f"], ["logits"], axis=1),
    ]
    report = _run(Workshop(tmp_path, model(nodes, [], 17)), "rpi4").report
    assert report.chosen is not None
    assert report.baseline.int8_fraction is None


def test_the_python_function_is_the_command(workshop: Workshop) -> None:
    told: list[str] = []
    conversion = convert(
        workshop.model, calibration=workshop.calibration, validation=workshop.validation, target="rpi4",
        sla=workshop.sla, output=workshop.output, name="net", release="r1",
        progress=lambda stage, _done, _all: told.append(stage),
    )  # fmt: skip
    assert conversion.passed
    assert conversion.manifest is not None
    assert (conversion.manifest.model, conversion.manifest.release) == ("net", "r1")
    assert told[0] == "calibrate"
    written = json.loads((workshop.output / "candidates.json").read_bytes())
    assert written == json.loads(msgspec.json.encode(conversion.report))


@pytest.mark.parametrize(
    ("file", "name"),
    [("Tiny Net.onnx", "tiny-net"), ("_x_.onnx", "x"), ("Ärger.onnx", "rger"), ("....onnx", "model")],
)
def test_default_names_are_names(file: str, name: str) -> None:
    assert default_name(Path(file)) == name


def _inputs(shop: Workshop, target: str, flags: str) -> Inputs:
    inputs = read_inputs(
        structs.replace(shop.options(target), root=_host(shop.folder, "x86_vnni")), utc_now()
    )
    machine = Machine(arch="x86_64", features=frozenset(flags.split()), cpu="test")
    return structs.replace(inputs, machine=machine, host_of_target_class=False, target=find_target(target))


@pytest.mark.parametrize(
    ("target", "flags", "widest", "unknown"),
    [
        ("x86-64", "avx2 avx512_vnni", 127, True),
        ("x86-64", "avx2 avx512_vnni", 64, False),
        ("rpi4", "avx2", 127, True),
        ("rpi4", "avx2 avx_vnni", 127, False),
        ("x86-64-vnni", "avx2", 100, True),
    ],
)
def test_saturation_makes_accuracy_doubtful_where_only_one_side_has_it(
    workshop: Workshop, target: str, flags: str, widest: int, unknown: bool
) -> None:
    found, notes = saturation(_inputs(workshop, target, flags), parse("static_wi8_au8_pc_minmax"), widest)
    assert found is unknown
    assert any("unproven" in note for note in notes) is unknown
