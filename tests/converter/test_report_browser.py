"""The report in a real browser: no error on its console, the choice marked, nothing cut on a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from converter.candidates import Fusion, Report
from converter.report import render
from converter.targets.loader import find_target
from tests.converter.reports import FLOAT, RECIPES, candidate, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium (as root, make test does)"
)

# Reads the page from outside, since it allows no script itself, and writes what it found into its own DOM.
_LOOK = """<!doctype html><body><iframe src="report.html" style="width:{width}px;height:900px;border:0"
onload="const d = this.contentDocument, t = d.querySelector('.wide'), c = d.querySelector('tbody.chosen');
const s = this.contentWindow.getComputedStyle(c), b = this.contentWindow.getComputedStyle(d.body);
document.body.dataset.page = d.documentElement.scrollWidth;
document.body.dataset.table = t.scrollWidth - t.clientWidth;
document.body.dataset.marked = s.backgroundColor != b.backgroundColor;
document.body.dataset.rings = d.querySelectorAll('.ring').length;"></iframe>"""


def _full_report() -> Report:
    rows = [
        candidate(
            name, size_bytes=176_000 + i, accuracy=0.9 + i / 1000, accuracy_ci95=(0.89, 0.92), agreement=0.98,
            latency_ratio=0.3 + i / 5, latency_ratio_ci95=(0.3, 0.4 + i / 5), latency_ms_p50=0.45,
            latency_ms_p95=0.58, latency_scope="host", fusion=Fusion(integer=14, float=3, qdq_left=2),
            fallback_predicted=True, int8_fraction=0.93, top5=0.99, entropy_bytes=150_000,
            runtime_version="1.31.1", decisions=("a_very_long_tensor_name/" * 12,),
            accuracy_evidence="unproven",
        )
        for i, name in enumerate(RECIPES)
    ]  # fmt: skip
    return report(
        FLOAT, *rows, chosen=2, sla_text="accuracy: {min: 0.9}\n" * 3, command="shallop-convert " + "x" * 300,
        target_profile=msgspec.to_builtins(find_target("rpi5")), provenance={"sla_sha256": "ab" * 32},
        sensitivity=({"tensor": "/features/block/" * 6, "kind": "conv", "effect_db": 9.25, "cost": 0.1},),
    )  # fmt: skip


def _browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The DOM as the browser holds it, and what it said on its console."""
    arguments = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={profile}", "--window-size=1400,1000", "--enable-logging=stderr", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(
        arguments, capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"HOME": str(profile)},
    )  # fmt: skip
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def test_the_browser_has_nothing_to_complain_of_and_the_choice_is_marked(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(render(_full_report()))
    dom, console = _browse(page, tmp_path / "profile")
    assert console == []
    marked = re.findall(r'<tbody class="chosen" data-chosen="([^"]*)"', dom)
    assert marked == [RECIPES[1]]
    assert f"Chosen: {RECIPES[1]}</h1>" in dom
    assert dom.count("<svg") == 2


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_cut_on_a_phone_a_tablet_or_a_desk(tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_bytes(render(_full_report()))
    look = tmp_path / "look.html"
    look.write_text(_LOOK.format(width=width))
    dom, console = _browse(look, tmp_path / "profile")
    assert console == []
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert int(found["page"]) <= width, "the page itself never scrolls sideways"
    assert found["marked"] == "true"
    assert found["rings"] == "2", "the chosen dot of each chart"
    if width != 768:
        assert found["table"] == "0", "the table fits; on a tablet it may scroll within its frame"


def test_the_check_of_the_console_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('boom')</script>")
    _, console = _browse(page, tmp_path / "profile")
    assert any("boom" in line for line in console)
