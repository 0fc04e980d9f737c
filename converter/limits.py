"""PURE. The converter's limits, each with its unit and its reason.

For: one place to see what the converter refuses to read and how much work it does at most.
Not for: the limits of the contract (`wire`).
"""

from __future__ import annotations

MODEL_BYTES_MAX = 2 * 1024**3 - 1
"""What one protobuf can hold."""

ARRAYS_BYTES_MAX = 4 * 1024**3
"""Of one `.npz`, unpacked: it is held in memory as it is stored."""

ARRAYS_MAX = 64
"""Arrays in one `.npz`."""

TEXT_BYTES_MAX = 1024**2
"""Of `dataset.yaml` and of the SLA."""

SAMPLES_MAX = 1_000_000
"""Of one data set."""

CALIBRATION_BATCH_MAX = 16
"""Samples whose activations live at once while ranges are collected; this bounds the memory."""

PREPROCESS_BATCH = 64
"""Samples turned into tensors at once."""

EVALUATION_WORKERS_MAX = 4
"""Samples evaluated side by side, each on one thread."""

LATENCY_RUNS_DEFAULT = 200
"""Timed pairs of one candidate and the baseline."""

LATENCY_RUNS_MIN = 30
"""Fewer give no useful interval of the median ratio; a time budget never cuts below."""

LATENCY_BLOCK_RUNS = 10
"""Pairs in a block; the order within a pair turns with each block."""

LATENCY_WARMUP_RUNS = 10
"""Runs of each that are thrown away."""

LATENCY_SECONDS_MAX = 30.0
"""For one candidate's pairs; a slow model gets fewer pairs, and its row says how many."""

SHARD_SAMPLES_MAX = 200
SHARD_BYTES_MAX = 8 * 1024**2
"""Of a validation shard's arrays before compression."""

REASON_CHARS_MAX = 400
"""Of a row's reason; runtimes print whole graphs into their exceptions."""

GRAM_BYTES_MAX = 1024**3
"""Of the Gram matrices that live at once; more tensors than fit cost another pass over the set."""
CHANNEL_SAMPLES_MAX = 256
"""Calibration samples whose single channels are looked at before equalization."""

EQUALIZE_SWEEPS_MAX = 12
"""Over all tensors; a sweep that moves nothing ends it before."""

EQUALIZE_FACTOR_MAX = 1e4
"""A channel is scaled by no more: beyond it float32 itself gets coarse beside the others."""

SEARCH_SAMPLES_MAX = 64
"""Calibration samples that each assignment of a search is computed on."""

SWITCHBOARD_BYTES_MAX = 512 * 1024**2
"""Of activations alive at once while an assignment is computed."""
