"""`shallop-convert` from outside: exit codes, messages, and what lies in the directory afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.progress import Progress as RichProgress
from rich.progress import TaskID

from converter.candidates import Candidate
from converter.cli.screen import progress
from tests.converter.builders import CLASSES, Workshop, conv_net, images
from tests.converter.commands import invoke, main_code

ROOT = Path(__file__).parents[2]


def _text(shop: Workshop) -> None:
    shop.model.write_text("hello")


def _truncated(shop: Workshop) -> None:
    shop.model.write_bytes(shop.model.read_bytes()[:200])


def _words(shop: Workshop) -> None:
    x = helper.make_tensor_value_info("image", TensorProto.STRING, ["N", 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
    node = helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)
    _save(shop, helper.make_graph([node], "g", [x], [y]))


def _four_axes(shop: Workshop) -> None:
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    y = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 1, 8, 8])
    _save(shop, helper.make_graph([helper.make_node("Relu", ["image"], ["map"])], "g", [x], [y]))


def _save(shop: Workshop, graph: onnx.GraphProto) -> None:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shop.model.write_bytes(made.SerializeToString())


def _batch_of_four(shop: Workshop) -> None:
    shop.model.write_bytes(conv_net(batch=4).SerializeToString())


def _wrong_labels(shop: Workshop) -> None:
    np.savez(shop.validation, image=images(12), labels=np.full(12, CLASSES))


def _wrong_label_names(shop: Workshop) -> None:
    (shop.folder / "dataset.yaml").write_text("labels: [one, two]")


def _not_empty(shop: Workshop) -> None:
    shop.output.mkdir()
    (shop.output / "manifest.json").write_text("{}")


_BAD: dict[str, tuple[Callable[[Workshop], object], str]] = {
    "text as model": (_text, "is not a valid ONNX model"),
    "truncated model": (_truncated, "export the model to ONNX again"),
    "no model": (lambda shop: shop.model.unlink(), "cannot be read"),
    "text input": (_words, "holds text"),
    "no class scores": (_four_axes, "scores of shape [N, classes]"),
    "fixed batch": (_batch_of_four, "free first axis or a batch of 1"),
    "labels outside": (_wrong_labels, "outside 0 to 3"),
    "label names": (_wrong_label_names, "names 2 labels"),
    "no calibration": (lambda shop: shop.calibration.unlink(), "does not exist"),
    "no sla": (lambda shop: shop.sla.unlink(), "cannot be read"),
    "unknown limit": (lambda shop: shop.sla.write_text("speed: 1"), "the keys are accuracy"),
    "sla no yaml": (lambda shop: shop.sla.write_text("{"), "is not YAML"),
    "output in use": (_not_empty, "--force"),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_ends_with_2_a_message_and_nothing_written(
    workshop: Workshop, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = _BAD[case]
    spoil(workshop)
    before = sorted(workshop.folder.rglob("*"))
    assert main_code(workshop.arguments(), monkeypatch) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""
    assert sorted(workshop.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--target", "toaster"], "there is no target"),
        (["--name", "Bad Name"], "--name"),
        (["--release", "../up"], "--release"),
        (["--output", "/"], "no place for a bundle"),
    ],
)
def test_bad_options_end_with_2(
    workshop: Workshop,
    extra: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_code([*workshop.arguments(), *extra], monkeypatch) == 2
    assert words in capsys.readouterr().err
    assert not workshop.output.exists()


def test_missing_options_are_named() -> None:
    result = invoke("model.onnx", "--target", "host")
    assert result.exit_code == 2
    assert "--calibration, --validation, --sla, --output" in result.stderr


def test_none_passes_ends_with_3_and_leaves_only_the_candidates(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.sla.write_text("size_bytes_max: 10\n")
    assert main_code(workshop.arguments(), monkeypatch) == 3
    left = sorted(path.name for path in workshop.output.iterdir())
    assert left == ["candidates.json", "report.html"]
    found = json.loads((workshop.output / "candidates.json").read_bytes())
    assert found["chosen"] is None
    assert {row["status"] for row in found["candidates"]} == {"fail"}
    assert all("size" in row["reason"] for row in found["candidates"])


def test_json_is_the_file_and_nothing_else(workshop: Workshop) -> None:
    result = invoke(*workshop.arguments(), "--json")
    assert result.exit_code == 0
    assert result.stdout.encode() == (workshop.output / "candidates.json").read_bytes()
    assert result.stderr == ""


# DESIGN.md section 7, word for word.
_KEYS = [
    "id",
    "recipe",
    "runtime",
    "precision",
    "status",
    "reason",
    "size_bytes",
    "accuracy",
    "accuracy_ci95",
    "agreement",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ratio",
    "int8_fraction",
    "sha256",
    "format",
    "n_samples",
    "accuracy_delta_ci95",
    "accuracy_evidence",
    "deferred",
    "latency_scope",
    "threads",
    "runtime_version",
    "fusion",
    "fallback_predicted",
    "twin_of",
    "decisions",
]


def test_candidates_json_has_every_key_and_null_where_unmeasured(workshop: Workshop) -> None:
    invoke(*workshop.arguments("rpi4"))
    found = json.loads((workshop.output / "candidates.json").read_bytes())
    assert {"baseline", "chosen", "candidates", "calibration", "provenance"} <= set(found)
    for row in [found["baseline"], *found["candidates"]]:
        assert set(_KEYS) <= set(row)
        assert row["twin_of"] is None
    quantized = [row for row in found["candidates"] if row["precision"] == "int8"]
    assert len(quantized) == 3
    for row in quantized:
        assert row["latency_ms_p50"] is row["latency_ratio"] is row["latency_scope"] is None
        assert any("emulates" in text for text in row["decisions"])
        assert row["accuracy_ci95"][0] <= row["accuracy"] <= row["accuracy_ci95"][1]
    assert found["candidates"][0] == found["baseline"]


def test_the_table_shows_what_is_unknown_as_unknown(workshop: Workshop) -> None:
    arguments = [word for word in workshop.arguments("rpi4") if word != "--quiet"]
    result = invoke(*arguments)
    assert "unknown" in result.stdout
    assert re.search(r"^ *\*\d+ +static_wi8_ai8_pc_minmax", result.stdout, re.MULTILINE)
    assert "first in the target's order of preference" in result.stdout


def test_force_replaces_a_bundle_and_nothing_else(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_code([*workshop.arguments(), "--release", "one"], monkeypatch) == 0
    assert main_code([*workshop.arguments(), "--release", "two", "--force"], monkeypatch) == 0
    assert json.loads((workshop.output / "manifest.json").read_bytes())["release"] == "two"
    kept = workshop.output / "precious.txt"
    kept.write_text("mine")
    assert main_code([*workshop.arguments(), "--force"], monkeypatch) == 2
    assert "precious.txt" in capsys.readouterr().err
    assert kept.read_text() == "mine"
    left = {path.name for path in workshop.folder.iterdir() if path.name.startswith("bundle")}
    assert left == {"bundle"}


def test_the_command_in_the_report_makes_it_again(workshop: Workshop) -> None:
    invoke(*workshop.arguments(), "--name", "with-name", "--release", "7")
    said = json.loads((workshop.output / "candidates.json").read_bytes())["command"]
    program, *words = shlex.split(said)
    assert program == "shallop-convert"
    again = invoke(*words, "--force", "--quiet")
    assert again.exit_code == 0, again.output
    found = json.loads((workshop.output / "candidates.json").read_bytes())
    assert found["command"] == f"{said} --force"
    assert (found["model"], found["release"]) == ("with-name", "7")
    assert found["sla_text"] == workshop.sla.read_text()
    assert found["target_profile"]["id"] == "x86_vnni"


def test_progress_told_by_many_threads_is_one_bar_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []
    real = RichProgress.add_task

    def counted(self: RichProgress, stage: str, *, total: float) -> TaskID:
        added.append(stage)
        time.sleep(0.01)
        return real(self, stage, total=total)

    monkeypatch.setattr(RichProgress, "add_task", counted)
    with progress(shown=False) as told, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: told("evaluate", i, 8), range(8)))
    assert added == ["evaluate"]


def test_a_late_word_does_not_bring_a_finished_bar_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def noted(_self: RichProgress, _task: TaskID, *, completed: int, visible: bool) -> None:
        seen.append((completed, visible))

    monkeypatch.setattr(RichProgress, "update", noted)
    with progress(shown=False) as told:
        for done in (1, 8, 3):
            told("evaluate", done, 8)
    assert seen == [(1, True), (8, False), (8, False)]


def _python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": f"{home}/.cache", "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_conversion_leaves_no_telemetry_behind(workshop: Workshop, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["shallop-convert", *workshop.arguments()]
    ended = _python(f"import sys; sys.argv = {arguments!r}; from converter.cli import main; main()", home)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert [str(path) for path in home.rglob("*")] == []


def test_importing_the_package_loads_neither_numpy_nor_a_runtime(tmp_path: Path) -> None:
    heavy = ("numpy", "onnx", "onnxruntime")
    code = f"import sys, converter, converter.cli; print([m for m in {heavy} if m in sys.modules])"
    ended = _python(code, tmp_path)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_a_row_is_the_type_that_the_converter_writes() -> None:
    assert set(_KEYS) <= set(Candidate.__struct_fields__)
