"""docs/convert.md says what is so: its example runs, its names and options exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from converter.cli import command
from converter.recipe import EXTRAS, Method, parse
from tests.converter.builders import Workshop
from wire.sla import Limits, parse_limits

TEXT = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = Workshop(tmp_path)
    workshop.model.rename(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    # Another target than this machine, which may be of no known class.
    exec(compile(example.replace('"host"', '"rpi4"'), "convert.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "float_wf32_af32 pass" in shown
    assert "chosen: onnxruntime/static_wi8_ai8_pc_auto because" in shown
    assert (tmp_path / "bundle" / "report.html").is_file()


def test_the_sla_of_the_page_is_one_and_names_every_key() -> None:
    (example,) = blocks("yaml")
    read = yaml.safe_load(example)
    assert parse_limits(read)
    assert set(read) == set(Limits.__struct_fields__)


def test_every_command_and_option_that_the_page_names_exists() -> None:
    known = {name for one in command.commands.values() for parameter in one.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known
    named = set(re.findall(r"^\$? ?shallop-convert ([a-z]+) ", TEXT, flags=re.MULTILINE))
    assert named == set(command.commands)


def test_every_recipe_that_the_page_names_is_one_and_the_grammar_is_whole() -> None:
    for name in re.findall(r"\b(?:static|dynamic|weight|float|mixed)_w\w+", TEXT):
        assert parse(name)
    plain = [extra for extra in EXTRAS if extra not in {"islands", "prune"}]
    for word in (*get_args(Method), *plain, "islands3", "prune30"):
        assert f"`{word}`" in TEXT, word
