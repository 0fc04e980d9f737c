"""Targets: model files, where the host cuts and describes them and a device looks before its runtime does.

For: the walkers of ONNX and TFLite in wire, the tensors that a delta is made of, the converter's readers and
the worker's own look at a file.
Not for: the runtimes; they run in a process that ends.
"""

from __future__ import annotations

from functools import partial

from agent.worker import model_file
from fleet.deltas.tensors import tensors_of
from tests.fuzz.corpus_files import kept
from tests.fuzz.mutate import bytes_with
from tests.fuzz.places import filed
from tests.fuzz.target import Target
from wire import onnx_walk, tflite_walk

_VARINTS = (
    b"\x80\x80\x80\x80\x08", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xff" * 10, b"\x80\x01",
    b"\xff\x7f",
    b"\x3a", b"\x2a", b"\x4a", b"\x0a\x00", b"\x08\x01", b"\x6a\x04\x0a\x00\x12\x00", b"\x70\x01",
)  # fmt: skip


def _onnx(data: bytes) -> object:
    spans = onnx_walk.tensor_spans(data)
    for span in spans:
        assert 0 <= span.offset < span.offset + span.size_bytes <= len(data)
    return spans, onnx_walk.boundaries(data), onnx_walk.initializers(data)


def _tflite(data: bytes) -> object:
    graph = tflite_walk.walk(data)
    spans = tflite_walk.tensor_spans(data)
    for span in spans:
        assert 0 <= span.offset < span.offset + span.size_bytes <= len(data)
    return (
        graph,
        spans,
        tflite_walk.payloads(data),
        tflite_walk.constants(data),
        tflite_walk.metadata_of(data),
    )


def _delta_tensors(data: bytes) -> object:
    found = tensors_of(data)
    for one in found:
        assert 0 <= one.span.offset < one.end <= len(data)
    return found


_WRITTEN = {"images", "int8", "float32"}


def _looked(runtime: str, name: str, data: bytes) -> object:
    """As the worker looks at it: mapped from a file, with what lies beside it."""
    path = filed(f"models/{name}", data)
    filed("models/weights.bin", bytes(16))
    model_file.require(path, runtime, (), (), {})
    return model_file._mapped(path, model_file._READERS[runtime])


TARGETS: tuple[Target, ...] = (
    Target(
        name="models.onnx_file",
        run=partial(_looked, "onnxruntime", "model.onnx"),
        seeds=lambda: kept("models.onnx_walk"),
        mutate=bytes_with(*_VARINTS),
        guided=True,
    ),
    Target(
        name="models.tflite_file",
        run=partial(_looked, "ai-edge-litert", "model.tflite"),
        seeds=lambda: {n: data for n, data in kept("models.tflite_walk").items() if n in _WRITTEN},
        mutate=bytes_with(b"TFL3"),
        guided=True,
        weight=100,
    ),
    Target(name="models.onnx_walk", run=_onnx, seeds=dict, mutate=bytes_with(*_VARINTS), guided=True),
    Target(
        name="models.tflite_walk", run=_tflite, seeds=dict, mutate=bytes_with(b"TFL3"), guided=True, weight=40
    ),
    Target(
        name="models.delta_tensors", run=_delta_tensors, seeds=dict, mutate=bytes_with(*_VARINTS),
        guided=True,
        weight=40,
    ),
)  # fmt: skip
