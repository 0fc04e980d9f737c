"""Bundles of tiny real models for the integration tests and the benchmarks, made in milliseconds.

The model is a linear classifier over 16 values with four classes, whose own answers are the labels, so a
healthy release scores 1.0. `ballast_bytes` adds an incompressible weight that the graph really reads, for
a transfer of any size. The kinds of harm: `wrong` answers at random, `garbage` is no model, `hang` loops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wire import bundle, chunks, codec
from wire.measures import Measure
from wire.sla import AccuracyLimit, Limits, Maximum

Harm = Literal["none", "wrong", "garbage", "hang"]
VARIANT = "onnxruntime/float_wf32_af32"
SAMPLES = 64
FEATURES, CLASSES = 16, 4

SLA = Limits(
    accuracy=AccuracyLimit(min=0.9),
    latency_ms_p95_max=Maximum(max=10_000, if_unmeasured="accept"),
)


def model_bytes(seed: int, ballast_bytes: int = 0, harm: Harm = "none") -> bytes:
    """The ONNX file."""
    if harm == "garbage":
        return np.random.default_rng(seed).bytes(4096)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    initializers = [numpy_helper.from_array(weight, "weight")]
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["scores"])]
    ballast = rng.standard_normal(max(1, ballast_bytes // 4)).astype(np.float32) * 1e-9
    initializers.append(numpy_helper.from_array(ballast, "ballast"))
    nodes += [
        helper.make_node("ReduceMean", ["ballast"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["scores", "nothing"], ["shifted"]),
    ]
    nodes += _hang(initializers) if harm == "hang" else [helper.make_node("Identity", ["shifted"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def _hang(initializers: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """A Loop that would run for years before it gives `shifted` on as `y`."""
    initializers.append(numpy_helper.from_array(np.int64(2**62), "trips"))
    initializers.append(numpy_helper.from_array(np.bool_(True), "go"))
    value = ["N", CLASSES]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Neg", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, value),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, value),
        ],
    )
    return [helper.make_node("Loop", ["trips", "go", "shifted"], ["y"], body=body)]


def _run(model: bytes, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": samples})[0], np.float32)


def file_of(folder: Path, path: str, data: bytes) -> bundle.File:
    """Writes a file of a bundle and says what the manifest has to say of it."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    pieces = chunks.pieces(data, chunks.cut(len(data)))
    return bundle.File(
        path=path,
        size_bytes=len(data),
        sha256=chunks.digest(data),
        chunks=tuple(bundle.Chunk(sha256=chunks.digest(p), size_bytes=len(p)) for p in pieces),
    )


def make_bundle(
    folder: Path,
    *,
    model: str = "tiny",
    release: str = "1",
    seed: int = 1,
    ballast_bytes: int = 0,
    harm: Harm = "none",
) -> bundle.Manifest:
    """Writes a bundle directory and gives its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    healthy = model_bytes(seed, ballast_bytes)
    shipped = healthy if harm == "none" else model_bytes(seed + 1, ballast_bytes, harm)
    samples = np.random.default_rng(99).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    outputs = _run(healthy, samples)
    shard = folder / "shard.npz"
    arrays = {
        bundle.input_key("x"): samples,
        bundle.LABELS_KEY: outputs.argmax(axis=1).astype(np.int64),
        bundle.fp32_key("y"): outputs,
        bundle.host_key(VARIANT, "y"): outputs,
    }
    np.savez(shard, allow_pickle=False, **arrays)
    file = file_of(folder, "variants/float_wf32_af32/model.onnx", shipped)
    manifest = bundle.Manifest(
        model=model,
        release=release,
        created_at="2026-11-21T06:00:00Z",
        task="classification",
        target="test",
        sla=SLA,
        inputs=(bundle.TensorSpec(name="x", dtype="float32", shape=(None, FEATURES)),),
        outputs=(bundle.TensorSpec(name="y", dtype="float32", shape=(None, CLASSES)),),
        variants=(
            bundle.Variant(
                id=VARIANT,
                runtime="onnxruntime",
                recipe="float_wf32_af32",
                precision="float32",
                model_path=file.path,
                files=(file,),
                host=bundle.HostFigures(
                    accuracy=Measure(value=1.0, low=0.94, high=1.0, n=SAMPLES),
                    accuracy_ratio=Measure(value=1.0, n=SAMPLES),
                    agreement=Measure(value=1.0, n=SAMPLES),
                ),
            ),
        ),
        validation=(
            bundle.Shard(
                file=file_of(folder, "validation/shard-0000.npz", shard.read_bytes()), n_samples=SAMPLES
            ),
        ),
        provenance=bundle.Provenance(source_model_sha256=chunks.digest(healthy)),
    )
    shard.unlink()
    (folder / "manifest.json").write_bytes(codec.encode(bundle.check(manifest)))
    return manifest


def digest_of(folder: Path) -> str:
    """The release's digest: of the manifest's exact bytes."""
    return chunks.digest((folder / "manifest.json").read_bytes())
