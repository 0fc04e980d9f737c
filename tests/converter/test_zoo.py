"""Every model of the zoo goes through a whole conversion: converted, or refused by name; nothing crashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.errors import InputError
from converter.inputs import Options
from converter.pipeline import Conversion, run
from tests.converter.zoo import CLASSES, Exhibit, samples_of
from tests.converter.zoo_layers import LAYERS
from tests.converter.zoo_odd import ODD

ZOO = LAYERS | ODD
SAMPLES = 16


def _options(folder: Path, exhibit: Exhibit) -> Options:
    path = folder / "model.onnx"
    proto = exhibit.save(path)
    labels = np.arange(SAMPLES) % CLASSES
    calibration, validation = samples_of(proto, SAMPLES, seed=1), samples_of(proto, SAMPLES, seed=2)
    np.savez(folder / "calibration.npz", allow_pickle=False, **calibration)
    np.savez(folder / "validation.npz", allow_pickle=False, **validation, labels=labels)
    (folder / "sla.yaml").write_text("size_bytes_max: 100000000\n")
    (folder / "root" / "proc").mkdir(parents=True)
    flags = "model name\t: test\nflags\t\t: avx2 avx512_vnni\n"
    (folder / "root" / "proc" / "cpuinfo").write_text(flags)
    return Options(
        model=path, calibration=folder / "calibration.npz", validation=folder / "validation.npz",
        target="x86_vnni", sla=folder / "sla.yaml", output=folder / "bundle", latency_samples=30,
        root=folder / "root",
    )  # fmt: skip


def _require_honest(conversion: Conversion) -> None:
    """Every row has a status and, unless it passed, a reason; the baseline was measured."""
    report = conversion.report
    assert report.baseline.accuracy is not None
    assert report.baseline.size_bytes is not None
    assert conversion.passed
    for row in report.candidates:
        assert row.status in {"pass", "fail", "error"}
        assert row.status == "pass" or row.reason


@pytest.mark.parametrize("name", [name for name, exhibit in ZOO.items() if exhibit.refused is None])
def test_it_is_converted(tmp_path: Path, name: str) -> None:
    _require_honest(run(_options(tmp_path, ZOO[name])))


@pytest.mark.parametrize("name", [name for name, exhibit in ZOO.items() if exhibit.refused])
def test_it_is_refused_by_name(tmp_path: Path, name: str) -> None:
    options = _options(tmp_path, ZOO[name])
    with pytest.raises(InputError) as caught:
        run(options)
    assert caught.value.code == ZOO[name].refused
    assert not (tmp_path / "bundle").exists()


def test_the_zoo_is_large_enough() -> None:
    """The issue asks for 25 models of different shapes."""
    assert sum(exhibit.refused is None for exhibit in ZOO.values()) >= 25
