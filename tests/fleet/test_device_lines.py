"""A device's line in a rollout: what was estimated, and what was measured in the heat, says so."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fleet.adapters.console import _device_row
from fleet.views import DeviceLine, _figures
from wire.measures import Latency, Measure, Source, TrialResult

RESULT = TrialResult(
    variant="onnxruntime/float_wf32_af32",
    runtime="onnxruntime",
    runtime_version="1",
    shards=(0,),
    n_samples=10,
    latency=Latency(ms_p50=1.0, ms_p95=2.0, ms_p99=3.0, n=200),
    power_watts_load=6.44,
)


@pytest.mark.parametrize(
    ("source", "throttled", "words"),
    [
        (Source.MEASURED, False, ("2.00 ms", "6.44 W")),
        (Source.ESTIMATED, None, ("2.00 ms", "6.44 W (estimate)")),
        (Source.MEASURED, True, ("2.00 ms (throttled)", "6.44 W")),
    ],
)
def test_a_line_names_what_decides_nothing(
    source: Source, throttled: bool | None, words: tuple[str, str]
) -> None:
    result = replace(RESULT, energy_mj=Measure(value=1.0, source=source), throttled=throttled)
    line = DeviceLine(device="roof-1", wave=0, online=True, **_figures(result))
    assert (line.power_source, line.throttled) == (source.value, throttled)
    row = _device_row(line)
    assert (row[6], row[10]) == words
