"""Validation shards: what a device measures accuracy with.

For: cutting the validation set into small `.npz` files, equal input giving equal bytes, each with stored
samples, labels, FP32 outputs and every variant's host outputs (`wire.bundle` names the arrays).
Not for: choosing which device gets which shard (fleet).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from math import ceil

import numpy as np

from converter.dataset import Array, Samples
from converter.evaluate import Outputs
from converter.limits import SHARD_BYTES_MAX, SHARD_SAMPLES_MAX
from wire.bundle import LABELS_KEY, fp32_key, host_key, input_key

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip entry can hold; a real one would change the bytes."""


def shard_arrays(samples: Samples, fp32: Outputs, hosts: Mapping[str, Outputs]) -> Iterator[dict[str, Array]]:
    """The arrays of each shard.

    Samples are dealt out in turn, so that a set sorted by class gives shards that hold all classes.

    Args:
        samples: the validation set.
        fp32: the baseline's outputs, first axis samples.
        hosts: outputs by variant id.
    """
    whole: dict[str, Array] = {input_key(name): array for name, array in samples.arrays.items()}
    if samples.labels is not None:
        whole[LABELS_KEY] = samples.labels
    whole |= {fp32_key(name): array for name, array in fp32.items()}
    for variant, outputs in hosts.items():
        whole |= {host_key(variant, name): array for name, array in outputs.items()}
    shards = shard_count(samples.n, sum(array.nbytes for array in whole.values()) / samples.n)
    for i in range(shards):
        yield {key: np.ascontiguousarray(array[i::shards]) for key, array in whole.items()}


def shard_count(n: int, bytes_per_sample: float) -> int:
    """Fewest shards that keep to both limits; a single sample above the size limit stands alone."""
    fitting = min(SHARD_SAMPLES_MAX, int(SHARD_BYTES_MAX / max(bytes_per_sample, 1.0)))
    return ceil(n / max(1, fitting))


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """An `.npz` of these arrays in the order of their names; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for key in sorted(arrays):
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.lib.format.write_array(content, arrays[key], allow_pickle=False)
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()
