"""Validation shards: small, deterministic, and together the whole set."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.dataset import Array, Samples
from converter.limits import SHARD_BYTES_MAX, SHARD_SAMPLES_MAX
from converter.shards import npz_bytes, shard_arrays, shard_count
from tests.converter.builders import CLASSES, images
from wire.bundle import LABELS_KEY, fp32_key, host_key, input_key

VARIANT = "onnxruntime/static_wi8_au8_pc_minmax"


def _samples(n: int) -> Samples:
    return Samples(
        path="here", sha256="0" * 64, arrays={"image": images(n)}, data={}, n=n,
        labels=np.arange(n, dtype=np.int64),
    )  # fmt: skip


@settings(max_examples=30)
@given(st.integers(1, 900))
def test_every_sample_stands_in_exactly_one_shard_with_its_own_outputs(n: int) -> None:
    scores = np.arange(n, dtype=np.float32)[:, None] * np.ones((1, CLASSES), np.float32)
    shards = list(shard_arrays(_samples(n), {"logits": scores}, {VARIANT: {"logits": -scores}}))
    seen: list[int] = []
    for arrays in shards:
        labels = arrays[LABELS_KEY]
        assert 0 < len(labels) <= SHARD_SAMPLES_MAX
        np.testing.assert_array_equal(arrays[fp32_key("logits")][:, 0], labels)
        np.testing.assert_array_equal(arrays[host_key(VARIANT, "logits")][:, 0], -labels)
        np.testing.assert_array_equal(arrays[input_key("image")], images(n)[labels])
        seen += labels.tolist()
    assert sorted(seen) == list(range(n))
    sizes = {len(arrays[LABELS_KEY]) for arrays in shards}
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 100_000), st.floats(1, 1e8))
def test_shards_keep_to_both_limits(n: int, bytes_per_sample: float) -> None:
    count = shard_count(n, bytes_per_sample)
    largest = -(-n // count)
    assert largest <= SHARD_SAMPLES_MAX
    assert largest == 1 or largest * bytes_per_sample <= SHARD_BYTES_MAX


def test_equal_arrays_give_equal_bytes_in_whatever_order() -> None:
    first: dict[str, Array] = {"b/x": np.arange(5), "a": images(3)}
    second = dict(reversed(first.items()))
    assert npz_bytes(first) == npz_bytes(second)
    with np.load(io.BytesIO(npz_bytes(first)), allow_pickle=False) as loaded:
        assert set(loaded.files) == {"a", "b/x"}
        np.testing.assert_array_equal(loaded["a"], first["a"])
