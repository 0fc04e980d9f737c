"""Targets: files that the converter's commands are given: a conversion's report, model files to look into.

For: `candidates.json`; a TFLite file read by the schema's classes and counted by the audit; the registry's
own record of a delta.
Not for: data sets (`tests.fuzz.targets_worker`, beside the worker's shards), or ONNX by the onnx package,
which is C++ and reads what a user exported.
"""

from __future__ import annotations

import msgspec

from converter.limits import CANDIDATES_BYTES_MAX
from converter.report.read import read_report
from converter.tflite.reader import read_file
from converter.tflite_audit import audit_tflite
from fleet.publish.hints import Made
from fleet.publish.shelf import _read
from tests.converter.reports import random_report
from tests.fuzz.corpus_files import kept
from tests.fuzz.mutate import bent_json, bytes_with
from tests.fuzz.places import filed
from tests.fuzz.target import Target
from tests.fuzz.targets_state import _HINT
from tests.wire.samples import DIGEST, OTHER
from wire import tflite_walk


def _report(data: bytes) -> object:
    return read_report(filed("candidates.json", data))[0]


def _audited(data: bytes) -> object:
    return audit_tflite(data), tflite_walk.edges(data), tflite_walk.metadata_of(data)


def _read_by_the_schema(data: bytes) -> object:
    found = read_file(data)
    return [(one.name, one.shape) for one in found.tensors], len(found.operators)


def _record(data: bytes) -> object:
    return _read(filed("record.json", data))


def _written() -> dict[str, bytes]:
    return {n: data for n, data in kept("models.tflite_walk").items() if n in {"images", "int8", "float32"}}


TARGETS: tuple[Target, ...] = (
    Target(
        name="converter.candidates",
        run=_report,
        seeds=lambda: {f"report-{seed}": msgspec.json.encode(random_report(seed)) for seed in (1, 2)},
        mutate=bent_json,
        again=msgspec.json.encode,
        memory_bytes_max=3 * CANDIDATES_BYTES_MAX,
        weight=60,
    ),
    Target(
        name="converter.tflite_audit",
        run=_audited,
        seeds=_written,
        mutate=bytes_with(b"TFL3"),
        weight=60,
        guided=True,
    ),
    Target(
        name="converter.tflite_reader",
        run=_read_by_the_schema,
        seeds=_written,
        mutate=bytes_with(b"TFL3"),
        weight=10,
    ),
    Target(
        name="fleet.delta_record",
        run=_record,
        seeds=lambda: {
            "made": msgspec.json.encode(Made(base=OTHER, new=DIGEST, hint=_HINT, blobs={DIGEST: 9}))
        },
        mutate=bent_json,
        weight=60,
    ),
)
