"""Each kind of bad calibration set gets its named finding or refusal, on the example's model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import structs
from numpy.typing import NDArray

from converter.calibrate import Calibration, calibrate, compare_sets, ranges_of
from converter.calibrate.findings import inspect_inputs, inspect_tensors
from converter.dataset import Samples, read_description, read_samples
from converter.errors import InputError
from converter.model import signature
from converter.recipe import parse

_FOLDER = Path(__file__).parents[2] / "examples" / "fashion"
_MODEL = onnx.load(str(_FOLDER / "fashion_v1.onnx"))
_SIGNATURE = signature(_MODEL)
_INPUT = _SIGNATURE.inputs[0].name


def _stored(name: str) -> Samples:
    description = read_description(_FOLDER / "dataset.yaml")
    return read_samples(_FOLDER / f"{name}.npz", description, _SIGNATURE, labelled=name == "validation")


def _tensors(name: str, n: int) -> NDArray[np.float32]:
    array: NDArray[np.float32] = _stored(name).feeds(0, n)[_INPUT]
    return array


def _samples(array: NDArray[Any]) -> Samples:
    return Samples(path="here", sha256="0" * 64, arrays={_INPUT: array}, data={}, n=len(array))


def _calibrated(array: NDArray[Any]) -> Calibration:
    return calibrate(_MODEL, _samples(array), _SIGNATURE)


def _codes(calibration: Calibration) -> set[str]:
    return {one.code for one in calibration.findings}


_CLEAN = _tensors("calibration", 64)


def _with_outlier() -> NDArray[np.float32]:
    array = _CLEAN.copy()
    array[17] *= 40
    return array


def test_a_clean_set_has_no_warning() -> None:
    found = _calibrated(_CLEAN)
    assert [one for one in found.findings if one.severity == "warning"] == []
    assert found.left_out == ()
    assert compare_sets(_samples(_CLEAN), _samples(_tensors("validation", 64))) == ()
    assert compare_sets(_stored("calibration"), _stored("validation")) == ()


def test_an_outlier_is_named_with_what_it_costs() -> None:
    found = _calibrated(_with_outlier())
    first = found.findings[0]
    assert (first.code, first.severity, first.samples) == ("outlier_sample", "warning", (17,))
    assert first.cost_bits is not None
    assert first.cost_bits > 4.0
    assert f"{first.cost_bits:.1f} bits" in first.words
    assert first.tensor in found.tensors


def test_only_minmax_follows_an_outlier() -> None:
    clean, wild = _calibrated(np.delete(_CLEAN, 17, axis=0)), _calibrated(_with_outlier())
    assert wild.left_out == (17,)
    for method in ("average", "percentile", "mse", "entropy", "auto"):
        recipe = parse(f"static_wi8_au8_pc_{method}")
        expected, found = ranges_of(clean, recipe), ranges_of(wild, recipe)
        assert found.keys() == expected.keys()
        for name, span in expected.items():
            assert found[name].low == pytest.approx(span.low, rel=1e-3, abs=1e-4)
            assert found[name].high == pytest.approx(span.high, rel=1e-3, abs=1e-4)
    assert wild.ranges[_INPUT].high > 15 * clean.ranges[_INPUT].high


def test_a_set_of_two_scales_is_no_set_with_outliers() -> None:
    array = _CLEAN.copy()
    array[:8] *= 40
    found = _calibrated(array)
    assert found.left_out == ()
    scale = next(one for one in found.findings if one.code == "input_scale")
    assert scale.samples == tuple(range(8))


def test_a_wrong_scale_is_seen_against_the_validation_set() -> None:
    raw = _stored("calibration").arrays[_INPUT][:64].astype(np.float32)
    [found] = compare_sets(_samples(raw), _samples(_tensors("validation", 64)))
    assert (found.code, found.severity, found.tensor) == ("input_scale", "warning", _INPUT)


def test_one_wild_sample_is_no_other_scale() -> None:
    assert compare_sets(_samples(_with_outlier()), _samples(_tensors("validation", 64))) == ()


def test_channels_in_another_order_are_seen() -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(40, 3, 4, 4)) + np.array([-2.0, 0.0, 2.0])[:, None, None]).astype(np.float32)
    [found] = compare_sets(_samples(array[:, ::-1]), _samples(array))
    assert found.code == "channel_mismatch"
    assert compare_sets(_samples(array), _samples(array)) == ()


def _read(path: Path, array: NDArray[Any]) -> Samples:
    np.savez(path / "calibration.npz", allow_pickle=False, **{_INPUT: array})
    return read_samples(path / "calibration.npz", read_description(_FOLDER / "dataset.yaml"), _SIGNATURE,
                        labelled=False)  # fmt: skip


def test_a_wrong_layout_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="order of axes") as caught:
        _read(tmp_path, _CLEAN.transpose(0, 2, 3, 1))
    assert caught.value.code == "samples_shape"


def test_a_set_with_nan_is_refused_with_its_sample(tmp_path: Path) -> None:
    array = _CLEAN.copy()
    array[5, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="sample 5") as caught:
        _read(tmp_path, array)
    assert caught.value.code == "samples_not_finite"
    with pytest.raises(InputError, match="sample 5") as caught:
        _calibrated(array)
    assert caught.value.code == "calibration_not_finite"


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, _CLEAN[:0])
    assert caught.value.code == "calibration_empty"


@pytest.mark.parametrize(("n", "code"), [(1, "one_sample"), (31, "too_few_samples"), (32, None)])
def test_few_samples(n: int, code: str | None) -> None:
    assert _codes(_calibrated(_CLEAN[:n])) & {"one_sample", "too_few_samples"} == ({code} if code else set())


def test_a_constant_input() -> None:
    assert {"constant_input", "duplicate_samples"} <= _codes(_calibrated(np.ones_like(_CLEAN)))


def test_repeated_samples_are_named() -> None:
    array = _CLEAN.copy()
    array[40] = array[3]
    [found] = [one for one in _calibrated(array).findings if one.code == "duplicate_samples"]
    assert found.samples == (40,)


def test_a_sample_that_stretches_an_inner_tensor_is_named() -> None:
    """Its input reaches no further than the others', yet one tensor does."""
    found = _calibrated(_CLEAN)
    name = next(reversed(found.tensors))
    one = found.tensors[name]
    assert one.sample_high is not None
    stretched = one.sample_high.copy()
    stretched[9] *= 10
    findings = inspect_tensors(
        {name: structs.replace(one, sample_high=stretched)}, inspect_inputs(_samples(_CLEAN))
    )
    assert [(f.code, f.samples, f.tensor) for f in findings] == [("stretching_sample", (9,), name)]
