"""`--candidates`, `--quick` and `--executor` of `shallop-convert convert`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.dataset import Samples
from converter.inputs import thinned
from tests.converter.builders import Workshop
from tests.converter.commands import invoke, main_code


def test_only_the_asked_candidates_are_made_in_their_order(workshop: Workshop) -> None:
    asked = "dynamic_wi8_af32, static_wi8_ai8_pc_minmax"
    result = invoke(*workshop.arguments("rpi4"), "--candidates", asked)
    assert result.exit_code == 0, result.output
    found = json.loads((workshop.output / "candidates.json").read_bytes())
    assert [row["recipe"] for row in found["candidates"][1:]] == asked.split(", ")
    assert found["chosen"] == "onnxruntime/dynamic_wi8_af32", "the order is the preference"
    assert "--candidates dynamic_wi8_af32,static_wi8_ai8_pc_minmax" in found["command"]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("static_wi8_au8_pc_minmax", "candidate_forbidden"),
        ("dynamic_wi8_af32,dynamic_wi8_af32", "candidate_forbidden"),
        ("int8", "recipe_malformed"),
    ],
)
def test_candidates_that_the_target_cannot_run_end_with_2(
    workshop: Workshop,
    names: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_code([*workshop.arguments("rpi4"), "--candidates", names], monkeypatch) == 2
    assert f"[{code}]" in capsys.readouterr().err
    assert not workshop.output.exists()


def test_a_quick_look_takes_fewer_samples_of_every_class(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, n=900)
    result = invoke(*workshop.arguments(), "--latency-samples", "200", "--quick")
    assert result.exit_code == 0, result.output
    found = json.loads((workshop.output / "candidates.json").read_bytes())
    assert {row["n_samples"] for row in found["candidates"]} == {400}
    assert found["provenance"]["options"]["validation_samples"] == "400"
    assert found["provenance"]["options"]["latency_samples"] == "30"


@given(st.integers(1, 1000), st.integers(1, 500))
def test_thinning_spreads_evenly(n: int, n_max: int) -> None:
    samples = Samples(path="", sha256="", arrays={"x": np.arange(n)}, data={}, n=n, labels=np.arange(n))
    few = thinned(samples, n_max)
    assert few.n == min(n, n_max) == len(few.arrays["x"])
    assert few.labels is not None
    assert few.arrays["x"].tolist() == few.labels.tolist()
    assert few.arrays["x"][0] == 0
    assert n_max == 1 or few.arrays["x"][-1] == n - 1
    steps = np.diff(few.arrays["x"])
    assert steps.size == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_processes_make_the_same_candidates(workshop: Workshop) -> None:
    invoke(*workshop.arguments("rpi4"), "--release", "1")
    here = json.loads((workshop.output / "candidates.json").read_bytes())
    done = invoke(*workshop.arguments("rpi4"), "--release", "1", "--force", "--executor", "processes:2")
    assert done.exit_code == 0, done.output
    there = json.loads((workshop.output / "candidates.json").read_bytes())
    for mine, theirs in zip(here["candidates"], there["candidates"], strict=True):
        for key in ("id", "sha256", "accuracy", "agreement", "fusion", "status", "decisions"):
            assert mine[key] == theirs[key]
    assert "--executor processes:2" in there["command"]


def test_an_executor_that_is_none_ends_with_2(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_code([*workshop.arguments(), "--executor", "toaster"], monkeypatch) == 2
    assert "[executor_malformed]" in capsys.readouterr().err
    assert not workshop.output.exists()


def _die(_bench: object, _recipe: object) -> None:
    os._exit(9)


def test_a_worker_that_dies_is_rows_with_their_reason(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.sweep.answer_candidate", _die)
    done = invoke(*workshop.arguments("rpi4"), "--executor", "processes:1")
    assert done.exit_code == 0, "FP32 passes and stays"
    rows = json.loads((workshop.output / "candidates.json").read_bytes())["candidates"]
    assert [row["status"] for row in rows] == ["pass", "error", "error", "error"]
    assert all("processes:1 gave no answer: BrokenProcessPool" in row["reason"] for row in rows[1:])
