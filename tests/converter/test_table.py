"""The candidate table: within any terminal, every figure whole."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from converter.candidates import Report
from converter.table import render
from tests.converter.reports import FLOAT, candidate, random_report, report


def shown(one: Report, width: int) -> str:
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    screen.print(render(one, width))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([80, 100, 112, 139, 160, 400]))
def test_no_line_is_wider_than_the_terminal_and_none_is_cut(seed: int, width: int) -> None:
    one = random_report(seed)
    text = shown(one, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for row in one.candidates:
        assert row.recipe in text
        assert row.reason in text


def test_a_wider_terminal_shows_more_figures() -> None:
    one = report(FLOAT, candidate("static_wi8_au8_pc_minmax", status="fail", reason="too slow"), chosen=0)
    heads = {width: shown(one, width).splitlines()[2].split() for width in (80, 120, 160)}
    assert {"size", "accuracy", "FP32", "status"} <= set(heads[80])
    assert "agreement" in heads[120]
    assert "int/float" not in heads[120]
    assert "int/float" in heads[160]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_where_two_runtimes_stand_each_row_names_its_own(width: int) -> None:
    twin = "static_wi8_au8_pc_auto_rr_twin"
    one = report(FLOAT, candidate(twin), candidate(twin, runtime="ai-edge-litert"), chosen=2)
    text = shown(one, width)
    assert re.search(rf"^ *2 +{twin} +ORT .* pass *$", text, re.MULTILINE)
    assert re.search(rf"^ *\*3 +{twin} +LiteRT .* pass *$", text, re.MULTILINE)
    assert "ORT" not in shown(report(FLOAT, candidate(twin), chosen=1), width)


@pytest.mark.parametrize("width", [80, 160])
def test_the_chosen_row_is_marked_and_reasons_stand_under_their_number(width: int) -> None:
    one = report(FLOAT, candidate("static_wi8_au8_pc_minmax", status="fail", reason="too slow"), chosen=0)
    text = shown(one, width)
    assert re.search(r"^ *\*1 +float_wf32_af32 .* pass *$", text, re.MULTILINE)
    assert re.search(r"^ *2 +static_wi8_au8_pc_minmax +unknown .* fail *$", text, re.MULTILINE)
    assert re.search(r"^ 2  too slow *$", text, re.MULTILINE)
