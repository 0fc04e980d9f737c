"""Made-up reports, from a seed or by hand.

For: tests of the page, the charts and the table, which read nothing but `candidates.json`.
Not for: figures that mean anything.
"""

from __future__ import annotations

import random

from converter.candidates import Candidate, Fusion, Report
from wire.sla import AccuracyLimit, Limits

RECIPES = (
    "float_wf16_af16", "static_wi8_au8_pc_minmax", "static_wi8_au8_pt_mse_cle_bc", "dynamic_wi8_af32",
    "static_wi8_ai16_pc_minmax", "mixed_wi8_au8_islands3", "weight_wi4_af32_g32", "as_it_was_given",
)  # fmt: skip


def candidate(recipe: str, **figures: object) -> Candidate:
    """A row of which nothing is known but what is given."""
    known: dict[str, object] = {"precision": "int8", "status": "pass", "runtime": "onnxruntime"} | figures
    return Candidate(id=f"{str(known['runtime']).replace('-', '_')}/{recipe}", recipe=recipe, **known)  # type: ignore[arg-type]


def report(*rows: Candidate, chosen: int | None = None, **fields: object) -> Report:
    """A report of these rows, the first of them FP32's."""
    known: dict[str, object] = {
        "model": "net", "release": "1", "target": "x86_vnni", "chosen_reason": "because", "calibration": {},
        "provenance": {},
    } | fields  # fmt: skip
    return Report(
        baseline=rows[0], candidates=rows, chosen=None if chosen is None else rows[chosen].id, **known  # type: ignore[arg-type]
    )  # fmt: skip


FLOAT = candidate(
    "float_wf32_af32", precision="fp32", size_bytes=600_000, accuracy=0.92, accuracy_ci95=(0.91, 0.93),
    latency_ratio=1.0, latency_ms_p50=1.3, latency_ms_p95=1.4, latency_scope="target", n_samples=2000,
)  # fmt: skip


def random_report(seed: int) -> Report:
    """Any report that the types allow, unknown figures and odd ones among them."""
    rng = random.Random(seed)
    rows = [_row(rng, "float_wf32_af32", "fp32")]
    rows += [_row(rng, recipe, "int8") for recipe in rng.sample(RECIPES, rng.randint(0, len(RECIPES)))]
    if rng.random() < 0.5:
        rows.append(_row(rng, "static_wi8_au8_pc_auto_twin", "int8", runtime="ai-edge-litert"))
    limit = rng.choice([None, AccuracyLimit(min=0.9), AccuracyLimit(min_fraction_of_baseline=0.99)])
    return report(
        *rows,
        chosen=rng.choice([None, *range(len(rows))]),
        limits=rng.choice([None, Limits(accuracy=limit)]),
        sensitivity=rng.choice([None, (), tuple(_tensor(rng) for _ in range(rng.randint(1, 40)))]),
        sparsity=rng.choice([None, (), ({"tensor": "w", "zeros": rng.choice([0.5, None, "odd"])},)]),
        calibration=rng.choice([{}, {"outliers": []}, {"findings": [{"name": "few", "n": 3}, "odd", None]}]),
        metric=rng.choice([None, {"name": "top1"}, {"name": "mae", "direction": "lower"}]),
        sla_text=rng.choice([None, "", "size_bytes_max: 10\n"]),
        command=rng.choice([None, "shallop-convert convert m.onnx"]),
        target_profile=rng.choice([None, {}, {"a": {"value": [], "source": "s"}, "status": "not compiled"}]),
    )


def _row(rng: random.Random, recipe: str, precision: str, runtime: str = "onnxruntime") -> Candidate:
    def maybe(value: object) -> object:
        return None if rng.random() < 0.25 else value

    accuracy = rng.choice([0.0, 0.4, 0.9, 0.91, 0.92, 1.0])
    ratio = rng.choice([0.0, 1e-9, 0.3, 0.33, 1.0, 5.0, 1e6])
    return candidate(
        recipe, precision=precision, runtime=runtime, status=rng.choice(["pass", "fail", "error"]),
        reason=rng.choice(["", "too large"]), size_bytes=maybe(rng.choice([0, 1, 999, 10**6, 2**40])),
        accuracy=maybe(accuracy), accuracy_ci95=maybe((max(0.0, accuracy - 0.01), min(1.0, accuracy + 0.01))),
        accuracy_delta_ci95=maybe((-0.01, 0.01)), samples_needed=maybe(1235), n_samples=maybe(2000),
        accuracy_evidence=maybe(rng.choice(["proven", "unproven", "refuted"])), agreement=maybe(0.99),
        latency_ratio=maybe(ratio), latency_ratio_ci95=maybe((ratio * 0.9, ratio * 1.1)),
        latency_ms_p50=maybe(min(ratio, 400.0)), latency_ms_p95=maybe(min(ratio, 400.0) * 2),
        top5=maybe(0.99), latency_scope=maybe(rng.choice(["host", "target"])), int8_fraction=maybe(0.5),
        fusion=maybe(Fusion(integer=1, float=2, qdq_left=3)), fallback_predicted=maybe(rng.random() < 0.5),
        entropy_bytes=maybe(77), deferred=tuple(rng.sample(["memory_bytes", "energy_mj", "new"], 2)),
        decisions=tuple(rng.sample(["kept in float", "equalized"], rng.randint(0, 2))),
    )  # fmt: skip


def _tensor(rng: random.Random) -> dict[str, object]:
    effect = rng.choice([None, -1.0, 0.0, 3.5, 40.0, "odd"])
    return {"tensor": "conv_1", "kind": rng.choice([None, "conv"]), "effect_db": effect, "cost": 0.1}
