"""Whole conversions for accelerators of TFLite files: full integer, linted, compiled where they can be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec import structs

from converter.candidates import Candidate
from converter.errors import InputError
from converter.pipeline import Conversion, run
from converter.targets.loader import find_target
from converter.targets.tflite_lint import predict
from converter.targets.vela import SETTING, find_vela
from converter.tflite.reader import read_file
from tests.converter.builders import Workshop

_LITERT = "ai_edge_litert"
_ALL_OF_IT = re.compile(r"\b(\d+) of \1 operators on the (accelerator|NPU), 100% of the multiplications")


def _converted(folder: Path, target: str) -> tuple[Conversion, Workshop]:
    workshop = Workshop(folder)
    recipe = find_target(target).rules.recipes.value[0].replace("auto", "minmax")
    names = (f"{_LITERT}/{recipe}", f"{_LITERT}/float_wf32_af32")
    return run(structs.replace(workshop.options(target), candidates=names)), workshop


def _twin(conversion: Conversion) -> Candidate:
    (found,) = (row for row in conversion.report.candidates if row.recipe.endswith("_twin"))
    return found


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("coral", "not compiled, not run: edgetpu_compiler is a proprietary program"),
        ("stm32mp2", "not compiled, not run: STM32MP2: ST Edge AI Core"),
    ],
)
def test_a_full_integer_file_for_an_accelerator(tmp_path: Path, target: str, words: str) -> None:
    conversion, workshop = _converted(tmp_path, target)
    row = _twin(conversion)
    assert row.status == "pass"
    assert (row.runtime, row.format, row.fallback_predicted) == ("ai-edge-litert", "tflite", False)
    assert any(one.startswith(words) for one in row.decisions)
    assert any(_ALL_OF_IT.search(one) for one in row.decisions)
    (path,) = workshop.output.glob(f"variants/{_LITERT}/*_twin/*.tflite")
    file = read_file(path.read_bytes())
    assert {file.tensors[place].dtype for place in (*file.inputs, *file.outputs)} == {"int8"}
    expected = predict(find_target(target), file)
    assert expected is not None
    assert expected.elsewhere == {}
    per_axis = any(one.quantization and one.quantization.per_axis for one in file.tensors)
    assert per_axis is find_target(target).rules.per_channel.value
    others = [one for one in conversion.report.candidates if one.id != row.id]
    assert all("on the accelerator" not in word for one in others for word in one.decisions)


def test_a_file_for_ethos_u_is_compiled_by_vela(tmp_path: Path) -> None:
    if find_vela() is None:
        pytest.skip("vela is not installed (pip install ethos-u-vela)")
    row = _twin(_converted(tmp_path, "ethos-u")[0])
    assert row.fallback_predicted is False
    (told,) = (one for one in row.decisions if "vela" in one)
    assert told.startswith("compiled by vela 5.")
    assert "not run on the NPU: " in told
    assert _ALL_OF_IT.search(told)
    assert "estimated by vela (" in told
    assert row.compiled is not None
    assert row.compiled.operators > 2
    assert (row.compiled.on_cpu, row.compiled.share) == (0, 1.0)
    assert row.compiled.compiler.startswith("vela 5.")
    assert f"{row.compiled.cycles_estimated} cycles" in told
    assert len(row.compiled.cache_key) == 64


def test_without_vela_it_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.inputs.vela_for", lambda _target, _given: None)
    row = _twin(_converted(tmp_path, "ethos-u")[0])
    assert any(one.startswith("not compiled, not run: ethos-u-vela 5.2.0") for one in row.decisions)
    assert any(
        one.startswith("predicted, not compiled: ") and _ALL_OF_IT.search(one) for one in row.decisions
    )
    assert row.compiled is None


def test_a_vela_that_is_not_there_or_has_no_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(tmp_path)
    absent = tmp_path / "vela"
    with pytest.raises(InputError) as caught:
        run(structs.replace(workshop.options("ethos-u"), candidates=(), vela=absent))
    assert caught.value.code == "vela_missing"
    with pytest.raises(InputError) as caught:
        run(structs.replace(workshop.options("x86_vnni"), vela=absent))
    assert caught.value.code == "vela_unused"
    monkeypatch.setenv(SETTING, str(absent))
    with pytest.raises(InputError) as caught:
        run(structs.replace(workshop.options("ethos-u"), candidates=()))
    assert caught.value.code == "vela_missing"
    assert not workshop.output.exists()
