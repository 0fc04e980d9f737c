"""The report's page and words: everything in it, nothing made up, nobody else's markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.candidates import Fusion, Report
from converter.report import read_report, render, words
from converter.report.page import rules_of, sensitivity_bars
from converter.targets.loader import all_targets, find_target
from tests.converter.reports import FLOAT, candidate, random_report, report

INT8 = candidate(
    "static_wi8_au8_pc_minmax", size_bytes=176_000, accuracy=0.915, accuracy_ci95=(0.905, 0.925),
    accuracy_delta_ci95=(-0.0081, 0.0021), accuracy_evidence="unproven", samples_needed=4321, n_samples=2000,
    agreement=0.98, latency_ratio=0.34, latency_ratio_ci95=(0.33, 0.36), latency_ms_p50=0.45,
    latency_ms_p95=0.58, latency_scope="host", fusion=Fusion(integer=14, float=3, qdq_left=2),
    fallback_predicted=True, int8_fraction=0.93, deferred=("memory_bytes",),
    decisions=("head kept in float: 3.2 dB",),
)  # fmt: skip
FAILED = candidate("dynamic_wi8_af32", status="fail", reason="size (bytes) 9 is above 3")
BROKEN = candidate("weight_wi4_af32_g32", status="error", reason="RecipeError: nothing to pack")

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags in order, text, and whether every element is closed where it should be."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html.decode())
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(one: Report) -> Page:
    return Page(render(one))


@settings(max_examples=80)
@given(st.integers(0, 2**32))
def test_any_report_renders_and_says_unknown_never_none(seed: int) -> None:
    one = random_report(seed)
    page = page_of(one)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)
    for row in one.candidates:
        assert row.recipe in page.text
    marked = [attributes for tag, attributes in page.tags if tag == "tbody" and "data-chosen" in attributes]
    assert len(marked) == (one.chosen is not None)


def test_the_page_has_every_section_of_a_full_report() -> None:
    one = report(
        FLOAT, INT8, FAILED, BROKEN, chosen=1,
        sla_text="# why\naccuracy: {min: 0.9}\n", command="shallop-convert convert net.onnx --target 'a b'",
        target_profile=msgspec.to_builtins(find_target("rpi5")), created_at="2026-11-21T08:00:00Z",
        sensitivity=({"tensor": "conv_7", "kind": "conv", "effect_db": 9.25, "cost": "0.03 x"},),
        sparsity=({"tensor": "w_9", "zeros": 0.5, "channels": 8, "channels_zero": 3, "two_of_four": True},),
        calibration={
            "n_samples": 40, "n_tensors": 24, "method": "minmax",
            "outliers": [{"input": "image", "sample": 17, "largest": 40.0, "times_median": 15.25}],
            "findings": [{"name": "too_few_samples", "text": "ranges still grow", "cost": "0.4 points"}],
        },
        provenance={"source_model_sha256": "ab" * 32, "tools": {"onnxruntime": "1.31.1"}},
    )  # fmt: skip
    text = page_of(one).text
    for expected in (
        "Chosen: static_wi8_au8_pc_minmax", "Why: because.", "176 KB", "so 0.29 x", "0.905 to 0.925",
        "between -0.0081 and +0.0021 (95%)", "2,000 samples cannot prove it: about 4,321 would",
        "host, not the target", "# why accuracy: {min: 0.9}", "0.33 to 0.36", "14, 3, 2",
        "falls back to float", "93%", "size (bytes) 9 is above 3", "RecipeError: nothing to pack",
        "head kept in float: 3.2 dB",
        "device decides peak memory", "conv_7", "9.25 dB, in float costs 0.03 x",
        "w_9: 50% zeros, 3 of 8 filters hold nothing else, two of every four neighbours",
        "outlier: sample 17 of image", "15.25 times", "too_few_samples : ranges still grow",
        "Cost: 0.4 points", "Samples: 40.", "MlasGemmX8S8 kernels on ARM64", "read or measured",
        "shallop-convert convert net.onnx --target 'a b'", "ab" * 32, "tools: onnxruntime 1.31.1",
        "2026-11-21T08:00:00Z", "not chosen: latency 1.00 x against 0.34 x",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_page_needs_no_network_and_runs_no_script() -> None:
    page = page_of(report(FLOAT, INT8, chosen=1))
    assert {"script", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.tags} == set()
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in {"href", "src"}:
                assert str(value).startswith(("#", "data:,")), (tag, value)
    html = render(report(FLOAT, INT8, chosen=1)).decode()
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert len(html) < 60_000


HOSTILE = "\"><script>alert(1)</script>'{{ 7*7 }}<svg onload=x>"


def test_hostile_names_stay_text_wherever_they_stand() -> None:
    row = candidate(
        HOSTILE, precision=HOSTILE, reason=HOSTILE, decisions=(HOSTILE,), runtime_version=HOSTILE,
        accuracy=0.9, latency_ratio=0.4, deferred=(HOSTILE,),
    )  # fmt: skip
    one = report(
        FLOAT, row, candidate(HOSTILE + "2", precision=HOSTILE), chosen=1, model=HOSTILE, release=HOSTILE,
        target=HOSTILE, chosen_reason=HOSTILE, sla_text=HOSTILE, command=HOSTILE, created_at=HOSTILE,
        sparsity=({"tensor": HOSTILE, "zeros": HOSTILE, "channels": HOSTILE, "channels_zero": HOSTILE},),
        sensitivity=({"tensor": HOSTILE, "kind": HOSTILE, "effect_db": 1.0, "cost": HOSTILE},),
        calibration={
            "method": HOSTILE, "findings": [{"name": HOSTILE, "text": HOSTILE, "cost": HOSTILE, HOSTILE: 1}],
            "outliers": [{"input": HOSTILE, "sample": HOSTILE}],
        },
        target_profile={
            "title": HOSTILE, HOSTILE: {"value": HOSTILE, "source": HOSTILE, "confidence": HOSTILE}
        },
        provenance={"sla_sha256": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
    )  # fmt: skip
    page = page_of(one)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert tags.count("svg") == 2, "the two charts and no other"
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7*7 }}" in page.text


def test_a_file_of_the_first_version_renders_with_what_it_does_not_hold_unknown(tmp_path: Path) -> None:
    old = {
        "model": "net", "release": "1", "target": "x86_vnni", "chosen": "onnxruntime/a", "chosen_reason": "r",
        "baseline": {"id": "onnxruntime/f", "recipe": "f", "runtime": "onnxruntime", "precision": "fp32",
                     "status": "pass"},
        "calibration": {"method": "minmax"}, "provenance": {}, "version": 1, "later": [1],
    }  # fmt: skip
    old["candidates"] = [old["baseline"], {**old["baseline"], "id": "onnxruntime/a", "recipe": "a"}]  # type: ignore[dict-item]
    (tmp_path / "candidates.json").write_text(json.dumps(old))
    found, content = read_report(tmp_path)
    assert json.loads(content) == old
    text = page_of(found).text
    assert "Chosen: a" in text
    for expected in (
        "does not hold the SLA's text", "does not hold findings", "does not hold the target's rules",
        "does not hold its command", "was not measured in this conversion", "no candidate has both figures",
        "no candidate has an accuracy", "Latency is unknown here",
    ):  # fmt: skip
        assert expected in text, expected


def test_none_chosen_and_fp32_chosen_are_said_first() -> None:
    none = page_of(report(FLOAT, FAILED, chosen_reason="no candidate passes the SLA"))
    assert "No candidate passes the SLA" in none.text
    assert "No bundle was made" in none.text
    assert none.text.lower().count("no candidate passes the sla") == 2, (
        "title and headline, not again as reason"
    )
    stays = page_of(report(FLOAT, FAILED, chosen=0))
    assert "FP32 stays" in stays.text
    assert "the difference in accuracy from FP32" not in stays.text


def test_where_none_passes_the_nearest_and_the_findings_are_named() -> None:
    bad = [candidate(f"static_wi{i}_au8_pc_minmax", status="fail", accuracy=i / 20) for i in (8, 4)]
    findings = {"outliers": [{"input": "image", "sample": 17}, {"input": "image", "sample": 3}]}
    said = words.facts(report(FLOAT, *bad, BROKEN, calibration=findings))
    assert "static_wi8_au8_pc_minmax has the best accuracy: 0.4000 against FP32's 0.9200" in said[1]
    assert said[2] == "The calibration set has findings: outlier: sample 17 of image, and 1 more."
    errors = words.facts(report(FLOAT, *bad, metric={"name": "mae", "direction": "lower"}))
    assert "static_wi4_au8_pc_minmax has the best mae: 0.2000" in errors[1]
    assert words.facts(report(FLOAT, BROKEN)) == words.facts(report(FLOAT))


def test_what_was_decided_for_all_is_said_once() -> None:
    rows = [candidate(f"static_wi{i}_au8_pc_minmax", decisions=("emulated", f"own {i}")) for i in (8, 4)]
    cleaned = candidate("float_wf32_af32", decisions=("folded",))
    assert words.decisions(report(cleaned, *rows, BROKEN)) == [
        ("every quantized candidate", ("emulated",)), ("float_wf32_af32", ("folded",)),
        ("static_wi8_au8_pc_minmax", ("own 8",)), ("static_wi4_au8_pc_minmax", ("own 4",)),
    ]  # fmt: skip
    assert words.decisions(report(cleaned, rows[0]))[1] == (rows[0].recipe, ("emulated", "own 8"))


def test_what_the_device_decides_of_every_row_is_said_once() -> None:
    rows = [candidate(name, deferred=("memory_bytes",)) for name in ("float_wf32_af32", "dynamic_wi8_af32")]
    one = report(*rows, BROKEN)
    assert words.deferred_by_all(one) == ("memory_bytes",)
    assert words.reason(rows[1], words.deferred_by_all(one)) == ""
    assert words.reason(rows[1]) == "device decides peak memory"
    assert page_of(one).text.count("peak memory") == 1
    uneven = candidate("static_wi8_au8_pc_minmax", deferred=("memory_bytes", "energy_mj"))
    assert words.deferred_by_all(report(*rows, uneven)) == ("memory_bytes",)
    assert words.deferred_by_all(report(uneven, *rows)) == ("memory_bytes",)
    assert words.reason(uneven, ("memory_bytes",)) == "device decides energy per inference"


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.id)
def test_every_rule_of_every_target_stands_in_its_report(target: object) -> None:
    profile = msgspec.to_builtins(target)
    sources = set(re.findall(r'"source":"((?:[^"\\]|\\.)*)"', msgspec.json.encode(profile).decode()))
    assert {rule.source for rule in rules_of(profile)} == {json.loads(f'"{text}"') for text in sources}


def test_what_was_not_compiled_and_not_run_is_said_on_top_and_hazards_have_their_sources() -> None:
    profile: dict[str, object] = {
        "title": "Some NPU",
        "compiler": {"value": {"name": "npuc", "here": False, "words": "npuc makes a plan of it"},
                     "confidence": "S", "source": "its manual"},
        "hazards": [{"value": "Resize is wrong", "confidence": "M", "source": "a talk"},
                    {"value": {"arch": ["aarch64"], "none": []}, "confidence": "V", "source": "tried"}],
        "detect": None,
    }  # fmt: skip
    one = report(FLOAT, INT8, chosen=1, target_profile=profile)
    assert "Not compiled, not run: npuc makes a plan of it." in words.facts(one)
    assert page_of(one).text.count("Not compiled, not run") == 2
    assert [(rule.value, rule.source) for rule in rules_of(profile)] == [
        ("name npuc, here no, words npuc makes a plan of it", "its manual"),
        ("Resize is wrong", "a talk"), ("arch aarch64", "tried"),
    ]  # fmt: skip


def test_tensors_stand_worst_first_and_the_unknown_last() -> None:
    bars = sensitivity_bars(
        [{"tensor": "a", "effect_db": 1.0}, {"tensor": "b"}, {"tensor": "c", "effect_db": 4.0},
         {"tensor": "d", "effect_db": -2.0}]
    )  # fmt: skip
    assert [(bar.tensor, bar.percent, bar.negative) for bar in bars] == [
        ("c", 100.0, False), ("a", 25.0, False), ("d", 50.0, True), ("b", 0.0, False),
    ]  # fmt: skip
    assert bars[-1].text == "unknown"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (175_969, "176 KB"),
     (999_499, "999 KB"), (999_600, "1.00 MB"), (5_074_000, "5.07 MB"),
     (86_400_000, "86.4 MB"), (2**40, "1100 GB")],
)  # fmt: skip
def test_sizes_have_three_digits(value: int | None, text: str) -> None:
    assert words.size(value) == text


@given(st.integers(1, 10**12))
def test_a_size_in_words_is_within_half_a_percent(value: int) -> None:
    figure, unit = words.size(value).split()
    factor = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(figure) * factor == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.4494, "0.449 ms"), (1.338, "1.34 ms"), (12.34, "12.3 ms"), (230.7, "231 ms")],
)
def test_milliseconds_have_three_digits(value: float | None, text: str) -> None:
    assert words.milliseconds(value) == text
