"""One valid value of every message, and a manifest; the other tests bend them."""

from __future__ import annotations

from wire import bundle, certificates, messages
from wire.figures import PairedCounts
from wire.measures import Conformance, Latency, Measure, TrialResult
from wire.sla import AccuracyLimit, Finding, Limits, Outcome, Verdict

DIGEST = "ab" * 32
OTHER = "cd" * 32
INSTALL = "0123456789abcdef" * 2

TRIAL = messages.TrialSummary(
    result=TrialResult(
        variant="onnxruntime/static_wi8_au8_pc_minmax",
        runtime="onnxruntime",
        runtime_version="1.31.1",
        shards=(0,),
        n_samples=200,
        accuracy=Measure(value=0.9, low=0.85, high=0.94, n=200),
        against_baseline=PairedCounts(both=178, candidate_only=2, reference_only=3, neither=17),
        conformance=Conformance(n=200, equal=1.0, same_answer=1.0, worst=0.0, conforms=True),
        latency=Latency(ms_p50=1.0, ms_p95=1.5, ms_p99=2.0, n=100),
        memory_bytes_peak=60_000_000,
    ),
    verdict=Verdict(
        findings=(
            Finding(limit="accuracy", outcome=Outcome.PASS, bound=0.8, value=0.9, reason="accuracy 0.9"),
        )
    ),
)

SLOT = messages.Slot(digest=DIGEST, release="1", variant="onnxruntime/float_wf32_af32", order=1)

DESIRED_MODEL = messages.DesiredModel(
    order=3, digest=DIGEST, release="2", variants=("onnxruntime/static_wi8_au8_pc_minmax",), shards=(0, 1)
)

_UP = {"device": "roof-17", "install_id": INSTALL, "number": 4}

MESSAGES: tuple[messages.Message, ...] = (
    messages.Status(**_UP, online=True, agent_version="0.1.0"),  # type: ignore[arg-type]
    messages.Identity(
        **_UP,  # type: ignore[arg-type]
        hardware=messages.Hardware(arch="aarch64", cpu_features=("asimddp",), cores=4),
        runtimes=(messages.RuntimeInfo(name="onnxruntime", version="1.31.1"),),
        agent_version="0.1.0",
        labels={"site": "north"},
    ),
    messages.Reported(
        **_UP,  # type: ignore[arg-type]
        models={"fashion": messages.ModelState(active=SLOT, order=3, order_highest=3, trial=TRIAL)},
    ),
    messages.Report(
        **_UP,  # type: ignore[arg-type]
        model="fashion",
        order=3,
        digest=DIGEST,
        event=messages.TrialEnded(trial=TRIAL),
    ),
    messages.Reply(**_UP, command="c1", result="done"),  # type: ignore[arg-type]
    messages.Desired(device="roof-17", groups=("north",), models={"fashion": DESIRED_MODEL}),
    messages.Command(
        id="c1",
        to=messages.ToDevice(device="roof-17"),
        action=messages.Rollback(model="fashion", from_=DIGEST, order=4),
        reply_to="device/{device}/up/reply/c1",
    ),
    messages.Ack(install_id=INSTALL, number=9),
    messages.Seed(registry_id=INSTALL, generation=12),
    messages.Bars(number=3, digests=(DIGEST,)),
    certificates.Renewal(
        device="roof-17",
        install_id=INSTALL,
        public=DIGEST,
        proof=DIGEST * 2,
        proof_before=OTHER * 2,
        root_number=1,
    ),
    certificates.Certificate(
        device="roof-17",
        public=DIGEST,
        pem="PEM",
        authorities_pem="PEM",
        not_before="2026-11-21T12:00:00+00:00",
        not_after="2027-02-19T12:00:00+00:00",
    ),
    certificates.CertificateRefused(code="revoked", detail="roof-17 was revoked"),
)


def file(path: str, size_bytes: int = 10, sha256: str = DIGEST) -> bundle.File:
    """A file of one chunk."""
    chunks = (bundle.Chunk(sha256=sha256, size_bytes=size_bytes),) if size_bytes else ()
    return bundle.File(path=path, size_bytes=size_bytes, sha256=sha256, chunks=chunks)


def variant(recipe: str, path: str = "model.onnx") -> bundle.Variant:
    """A variant of one file under a directory of its own."""
    full = f"variants/{recipe}/{path}"
    return bundle.Variant(
        id=f"onnxruntime/{recipe}",
        runtime="onnxruntime",
        recipe=recipe,
        precision="int8",
        model_path=full,
        files=(file(full),),
    )


MANIFEST = bundle.Manifest(
    model="fashion",
    release="2",
    created_at="2026-11-21T06:00:00Z",
    task="classification",
    target="x86_vnni",
    sla=Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.98), latency_ms_p95_max=30),
    inputs=(bundle.TensorSpec(name="image", dtype="float32", shape=(None, 1, 28, 28)),),
    outputs=(bundle.TensorSpec(name="logits", dtype="float32", shape=(None, 10)),),
    data={
        "image": bundle.InputData(
            stored="raw",
            layout="NCHW",
            preprocessing=(bundle.Scale(factor=1 / 255), bundle.Normalize(mean=(0.286,), std=(0.353,))),
        )
    },
    labels=("shirt", "bag"),
    variants=(
        variant("static_wi8_au8_pc_minmax"),
        variant("float_wf32_af32"),
        bundle.Variant(
            id="ai_edge_litert/static_wi8_au8_pc_minmax_twin",
            runtime="ai-edge-litert",
            recipe="static_wi8_au8_pc_minmax_twin",
            precision="int8",
            model_path="variants/twin/model.tflite",
            files=(file("variants/twin/model.tflite"),),
            axes={"image": (0, 2, 3, 1)},
            twin_of="onnxruntime/static_wi8_au8_pc_minmax_twin",
            parity=bundle.Parity(
                operators=9, equal=7, one_step=1, worse=0, outputs_equal=0.98, first_divergence="/pool/out"
            ),
        ),
    ),
    validation=(bundle.Shard(file=file("validation/shard-0000.npz", 20, OTHER), n_samples=200),),
    provenance=bundle.Provenance(source_model_sha256=DIGEST),
)
