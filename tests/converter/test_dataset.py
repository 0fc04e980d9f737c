"""Data sets that do not fit are refused by name, with what to do."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.dataset import Description, Samples, read_description, read_samples
from converter.errors import InputError
from converter.model import signature
from tests.converter.builders import CLASSES, conv_net, images
from wire.bundle import InputData, Normalize, Scale

SIGNATURE = signature(conv_net())
LABELS = np.arange(12) % CLASSES


def _read(path: Path, *, labelled: bool = True, description: Description | None = None) -> Samples:
    return read_samples(path, description or Description(), SIGNATURE, labelled=labelled)


def _saved(path: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type] # numpy's stub has a keyword of its own there
    return path


def _nan() -> NDArray[np.float32]:
    array = images(12)
    array[5, 0, 3, 3] = np.nan
    return array


_BAD: dict[str, tuple[Callable[[], dict[str, NDArray[np.generic]]], str, str]] = {
    "missing input": (lambda: {"labels": LABELS}, "validation_names", "missing: image"),
    "unknown array": (
        lambda: {"image": images(12), "labels": LABELS, "extra": LABELS},
        "validation_names", "unknown: extra",
    ),
    "no labels": (lambda: {"image": images(12)}, "validation_names", "missing: labels"),
    "other shape": (
        lambda: {"image": np.zeros((12, 1, 9, 8), np.float32), "labels": LABELS},
        "samples_shape", r"\[1, 9, 8\]",
    ),
    "other rank": (
        lambda: {"image": np.zeros((12, 64), np.float32), "labels": LABELS}, "samples_shape", "64",
    ),
    "other type": (
        lambda: {"image": images(12).astype(np.uint8), "labels": LABELS}, "samples_dtype", "dataset.yaml",
    ),
    "text": (
        lambda: {"image": np.full((12, 1, 8, 8), "x"), "labels": LABELS}, "samples_dtype", "no numbers",
    ),
    "not a number": (lambda: {"image": _nan(), "labels": LABELS}, "samples_not_finite", "first in sample 5"),
    "empty": (lambda: {"image": images(12)[:0], "labels": LABELS[:0]}, "validation_empty", "0 samples"),
    "fewer labels": (lambda: {"image": images(12), "labels": LABELS[:9]}, "labels_count", "9 labels for 12"),
    "float labels": (
        lambda: {"image": images(12), "labels": LABELS.astype(np.float64)},
        "labels_type", "one integer a sample",
    ),
    "scalar": (lambda: {"image": np.array(3.0), "labels": LABELS}, "validation_empty", "0 samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    arrays, code, words = _BAD[case]
    with pytest.raises(InputError, match=words) as caught:
        _read(_saved(tmp_path / "v.npz", **arrays()))
    assert caught.value.code == code


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = _saved(tmp_path / "v.npz", image=np.array([{"a": 1}] * 3), labels=LABELS)
    with pytest.raises(InputError, match="Python objects") as caught:
        _read(path)
    assert caught.value.code == "validation_malformed"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"numpy\.savez") as caught:
        _read(path)
    assert caught.value.code == "validation_malformed"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check the path") as caught:
        _read(tmp_path / "none.npz", labelled=False)
    assert caught.value.code == "calibration_missing"


def test_damaged_and_lying_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    np.savez_compressed(path, image=images(12), labels=LABELS)
    whole = bytearray(path.read_bytes())
    whole[200:260] = bytes(60)
    path.write_bytes(whole)
    with pytest.raises(InputError) as caught:
        _read(path)
    assert caught.value.code == "validation_malformed"


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000, 1, 8, 8), }"
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", head)
    with pytest.raises(InputError, match="cut short") as caught:
        _read(path, labelled=False)
    assert caught.value.code == "calibration_malformed"


def test_too_large_an_archive_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.dataset.ARRAYS_BYTES_MAX", 1000)
    with pytest.raises(InputError, match="fewer samples") as caught:
        _read(_saved(tmp_path / "c.npz", image=images(12)), labelled=False)
    assert caught.value.code == "calibration_too_large"


def test_a_calibration_set_may_hold_labels(tmp_path: Path) -> None:
    samples = _read(_saved(tmp_path / "c.npz", image=images(12), labels=LABELS), labelled=False)
    assert samples.labels is None
    assert samples.n == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inputs: {image: {stored: raw, color: red}}", "color"),
        ("inputs: {image: {stored: raw, preprocessing: [{op: scale, factor: 1, by: 2}]}}", "by"),
        ("inputs: {image: {stored: raw, preprocessing: [{op: blur}]}}", "blur"),
        ("inputs: {image: {stored: cooked}}", "cooked"),
        ("name: x", "name"),
        ("inputs: [", "cannot be read"),
        ("labels: 7", "labels"),
    ],
)
def test_a_description_with_anything_unknown_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_description(path)
    assert caught.value.code == "dataset_malformed"


def test_a_description_becomes_the_contracts_type(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(
        "inputs: {image: {stored: raw, layout: NCHW, preprocessing: "
        "[{op: scale, factor: 0.0039}, {op: normalize, mean: [0.286], std: [0.353]}]}}\nlabels: [a, b]"
    )
    steps = (Scale(factor=0.0039), Normalize(mean=(0.286,), std=(0.353,)))
    data = InputData(stored="raw", layout="NCHW", preprocessing=steps)
    assert read_description(path) == Description(inputs={"image": data}, labels=("a", "b"))


def test_a_description_of_another_models_input_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "c.npz", image=images(12))
    with pytest.raises(InputError, match="the model's inputs are image"):
        _read(path, labelled=False, description=Description(inputs={"picture": InputData()}))


def test_a_normalization_that_does_not_fit_the_channels_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "c.npz", image=images(12))
    wrong = InputData(stored="raw", layout="NCHW", preprocessing=(Normalize(mean=(0, 0), std=(1, 1)),))
    with pytest.raises(InputError, match="2 channels"):
        _read(path, labelled=False, description=Description(inputs={"image": wrong}))


def test_batches_and_singles_give_every_sample_once_in_order(tmp_path: Path) -> None:
    array = images(150)
    samples = _read(_saved(tmp_path / "c.npz", image=array), labelled=False)
    batches = [feeds["image"] for feeds in samples.batches(64)]
    assert [len(batch) for batch in batches] == [64, 64, 22]
    np.testing.assert_array_equal(np.concatenate(batches), array)
    singles = [feeds["image"] for feeds in samples.singles(10, 145)]
    assert {single.shape for single in singles} == {(1, 1, 8, 8)}
    np.testing.assert_array_equal(np.concatenate(singles), array[10:145])
