"""Shards that came over the network and are not what they should be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.worker import shards
from agent.worker.shards import read_samples
from tests.agent.models import (
    CLASSES,
    FEATURES,
    VARIANT,
    Array,
    good_job,
    model_of,
    refused,
    samples,
    save_shard,
    scores,
    shard_arrays,
    with_arrays,
)
from wire.bundle import host_key, input_key

HOST = host_key(VARIANT, "y")


def changed_shards() -> dict[str, dict[str, Array | None]]:
    x = samples()
    infinite = x.copy()
    infinite[3, 3] = np.inf
    return {
        "no input": {input_key("x"): None},
        "another input": {input_key("x"): None, input_key("z"): x},
        "wide samples": {input_key("x"): np.ones((40, FEATURES + 1), np.float32)},
        "deep samples": {input_key("x"): np.ones((40, FEATURES, 1), np.float32)},
        "doubles": {input_key("x"): x.astype(np.float64)},
        "no samples": {input_key("x"): x[:0]},
        "a number": {input_key("x"): np.array(3.0, np.float32)},
        "infinite": {input_key("x"): infinite},
        "words": {input_key("x"): np.array([["a"] * FEATURES] * 40)},
        "dates": {"labels": np.zeros(40, "datetime64[s]")},
        "few labels": {"labels": np.zeros(39, np.int64)},
        "deep labels": {"labels": np.zeros((40, 2, 2), np.int64)},
        "float labels": {"labels": np.zeros(40, np.float32)},
        "negative labels": {"labels": np.full(40, -1, np.int64)},
        "unknown class": {"labels": np.full(40, CLASSES, np.int64)},
        "few outputs": {"fp32/y": np.zeros((39, CLASSES), np.float32)},
        "words for outputs": {HOST: np.array([["a"] * CLASSES] * 40)},
        "outputs that are no numbers": {HOST: np.full((40, CLASSES), np.nan, np.float32)},
    }


@pytest.mark.parametrize("case", sorted(changed_shards()))
def test_a_shard_that_is_not_what_it_should_be_is_refused(tmp_path: Path, case: str) -> None:
    refused(with_arrays(good_job(tmp_path), tmp_path, changed_shards()[case]), "shard_unreadable")


def test_reference_outputs_of_another_shape_are_a_mismatch(tmp_path: Path) -> None:
    wide = np.zeros((40, CLASSES + 1), np.float32)
    for key in (HOST, "fp32/y"):
        refused(with_arrays(good_job(tmp_path), tmp_path, {key: wide}), "output_mismatch")


def test_a_shard_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    path = tmp_path / "objects.npz"
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **{input_key("x"): np.array([{"a": 1}], object)})
    assert "allow_pickle" in refused(replace(job, shards=(str(path),)), "shard_unreadable")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "missing", "directory"])
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: str) -> None:
    job = good_job(tmp_path)
    path = Path(job.shards[0])
    data = bytearray(path.read_bytes())
    if damage in {"missing", "directory"}:
        path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "flipped":
        data[len(data) // 4] ^= 0xFF
        path.write_bytes(data)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "text": b"no archive", "cut": bytes(data[:-100])}[damage])
    refused(job, "shard_unreadable")


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    """A hundred bytes that claim to be a petabyte."""
    path = tmp_path / "liar.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (281474976710656,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input/x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    refused(replace(good_job(tmp_path), shards=(str(path),)), "shard_unreadable")


def test_shards_that_disagree_are_refused(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    x = samples()
    arrays = shard_arrays(x, scores(model_of(job), x)) | {"fp32/y": np.zeros((40, 2), np.float32)}
    other = save_shard(tmp_path / "other.npz", arrays)
    refused(replace(job, shards=(*job.shards, str(other)), shard_indices=(0, 1)), "shard_unreadable")


def test_shards_larger_than_the_limit_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = good_job(tmp_path)
    monkeypatch.setattr(shards, "UNPACKED_BYTES_MAX", 1000)
    assert "at most 1000" in refused(job, "shard_unreadable")


def test_the_limit_is_for_all_shards_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = good_job(tmp_path)
    size = sum(
        array.nbytes for array in shard_arrays(samples(), np.zeros((40, CLASSES), np.float32)).values()
    )
    monkeypatch.setattr(shards, "UNPACKED_BYTES_MAX", int(size * 2.5))
    twice = replace(job, shards=job.shards * 2, shard_indices=(0, 0))
    assert read_samples(twice).n == 80
    refused(replace(job, shards=job.shards * 3, shard_indices=(0, 0, 0)), "shard_unreadable")


def test_the_outputs_of_other_variants_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {host_key("onnxruntime/other", "y"): np.zeros((40, 10_000), np.float32)}
    job = with_arrays(good_job(tmp_path), tmp_path, huge)
    monkeypatch.setattr(shards, "UNPACKED_BYTES_MAX", 100_000)
    assert read_samples(replace(job, shards=job.shards * 2)).n == 80


def test_a_trial_without_shards_is_refused(tmp_path: Path) -> None:
    refused(replace(good_job(tmp_path), shards=(), shard_indices=()), "shard_unreadable")
