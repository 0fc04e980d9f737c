"""PURE. The converter's limits, each with its unit and its reason.

For: one place to see what the converter refuses to read and how much work it does at most.
Not for: the limits of the contract (`wire`).
"""

from __future__ import annotations

MODEL_BYTES_MAX = 2 * 1024**3 - 1
"""What one protobuf can hold."""

FIELDS_MAX = 4_000_000
"""Of a model's protobuf, in all: eight times what a device looks at, and eight seconds of work on x86-64."""

NODES_MAX = 1_000_000
"""Of a model whose functions are written out."""

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

QUICK_SAMPLES_MAX = 400
"""Validation samples of a first look."""

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

ACTIVATION_BYTES_MAX = 512 * 1024**2
"""Of all float32 activations of one calibration batch, were they all alive; a larger model gets a smaller
batch, down to one sample."""

HISTOGRAM_BINS = 4096
"""Of one tensor's histogram: 32 KiB, and a value 40 times beyond the others still leaves them 100 bins."""

HISTOGRAM_VALUES_PER_SAMPLE = 2048
"""Of one tensor and sample that its histogram takes, at evenly spaced positions; extremes are exact."""

CHANNELS_MAX = 16384
"""Of a tensor whose channels are followed one by one."""

SAMPLE_EXTREMES_MAX = 4 * 1024**2
"""Smallest and largest values by sample and tensor that are kept to name samples: 32 MiB. A larger set
follows fewer tensors, the model's inputs first."""

CALIBRATION_SAMPLES_ADVISED = 32
"""Fewer give a finding: published calibrations use 100 to 512, and ranges still move below this."""

FINDINGS_MAX = 20
"""Of one kind."""

CHANNEL_SAMPLES_MAX = 256
"""Calibration samples whose single channels are looked at before equalization."""

EQUALIZE_SWEEPS_MAX = 12
"""Over all tensors; a sweep that moves nothing ends it before."""

EQUALIZE_FACTOR_MAX = 1e4
"""A channel is scaled by no more: beyond it float32 itself gets coarse beside the others."""

SEARCH_SAMPLES_MAX = 48
"""Calibration samples that each assignment of a search is computed on."""

SEARCH_SAMPLES_MIN = 16
"""As many, however large the model."""

SEARCH_BYTES = 512 * 1024**2
"""Of all activations that one evaluation of a search computes: its work in bytes. A small model is searched
on SEARCH_SAMPLES_MAX samples, EfficientNet-Lite0 (107 MB a sample) on 16."""

SWITCHBOARD_BYTES_MAX = 32 * 1024**2
"""Of activations of one batch while an assignment is computed. Small, for elementwise work lives in the
cache: EfficientNet-Lite0 took 17 ms a sample one by one and 47 in batches of four."""

SWITCHBOARD_INPUT_BYTES_MAX = 256 * 1024**2
"""Of the samples that a search holds as tensors."""

BIAS_LAYERS_MAX = 64
"""Layers whose biases are corrected, one after another; each costs one evaluation."""

AUTO_EVALUATIONS_MAX = 80
"""Of the choice of a range method for each tensor."""

ISLAND_SAMPLES_MAX = 512
"""That decide whether a set of islands meets the goal."""

ISLAND_EVALUATIONS_MAX = 48
"""Sets of islands that are measured."""

ISLANDS_MAX = 99
"""Candidates for an island that are searched, the ones most worth it; a recipe's name counts no further."""

PROFILE_RUNS = 15
"""Of each graph under the profiler, to cost islands; the median counts."""

CANDIDATES_BYTES_MAX = 64 * 1024**2
"""Of a `candidates.json` that is read back."""

CHART_ISLANDS_MAX = 12
"""Worst activations of which the sensitivity chart shows what an island there gains."""
