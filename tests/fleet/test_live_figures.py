"""What applications count, on its way through the registry: folded, kept, shown, and never a sign of more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fleet.adapters import console
from fleet.inventory import Device, fold
from fleet.views import device_view
from wire.messages import MODELS_MAX, LiveMeasured, Phase, PhaseChanged, Report

INSTALL, OTHER = "1" * 32, "2" * 32


def live(number: int, model: str = "digits", install: str = INSTALL, **fields: object) -> Report:
    figures = LiveMeasured(variant="onnxruntime/x", window_s=900.0, **{"latency_n": number, **fields})  # type: ignore[arg-type]
    return Report(
        device="roof-1", install_id=install, number=number, model=model, digest="a" * 64, event=figures
    )


def phase(number: int) -> Report:
    event = PhaseChanged(phase=Phase.IDLE)
    return Report(device="roof-1", install_id=INSTALL, number=number, model="digits", event=event)


def folded(reports: Sequence[Report], start: Device | None = None) -> Device:
    device = start or Device(id="roof-1")
    for report in reports:
        device = fold(device, report, 100.0 + report.number)
    return device


def test_the_newest_figures_of_each_model_are_kept() -> None:
    device = folded([live(1), live(2, "faces"), phase(3), live(4)])
    assert {model: seen.number for model, seen in device.live.items()} == {"digits": 4, "faces": 2}
    assert device.live["digits"].seen_at == 104.0
    assert device.live["digits"].digest == "a" * 64


def test_the_order_of_arrival_makes_no_difference() -> None:
    reports = [live(1), phase(2), live(3, "faces"), live(4), phase(5)]
    views = {repr(sorted(folded(order).live.items())) for order in itertools.permutations(reports)}
    assert len(views) == 1


def test_figures_that_come_late_are_no_sign_of_life() -> None:
    before = folded([live(1), phase(9)])
    after = fold(before, live(5), 5000.0)
    assert after.live["digits"].number == 5
    assert after.seen_at == before.seen_at
    assert fold(after, live(5), 6000.0) is after, "the same once more changes nothing"
    assert fold(after, live(4), 6000.0) is after


def test_a_device_cannot_name_models_without_end() -> None:
    device = folded([live(number, f"m{number}") for number in range(1, MODELS_MAX + 20)])
    assert len(device.live) == MODELS_MAX
    assert "m1" not in device.live


def test_figures_belong_to_the_install_that_speaks() -> None:
    device = folded([live(1, install=OTHER)])
    assert set(device.live) == {"digits"}
    after = folded([live(1, "faces")], device)
    assert after.install_id == INSTALL
    assert set(after.live) == {"faces"}


def test_they_are_shown_and_unknown_stays_unknown() -> None:
    device = folded([
        live(1, latency_n=0, confidence_n=7),
        live(2, "faces", latency_n=500, latency_ms_p95=31.5, drift=True, drifted=("latency",)),
    ])  # fmt: skip
    tables = console.device_tables(device_view(device))
    assert len(tables) == 3
    cells = [list(column.cells) for column in tables[-1].columns]
    rows = {row[0]: row for row in zip(*cells, strict=True)}
    digits, faces = rows["digits"], rows["faces"]
    assert digits[4] == "unknown"
    assert digits[-1] == "unknown"
    assert faces[4] == "31.50 ms"
    assert faces[-1] == "latency"
    assert len(console.device_tables(device_view(folded([phase(1)])))) == 2
