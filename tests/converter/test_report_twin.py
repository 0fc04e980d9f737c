"""The report's section on the twin, from whatever a candidates.json holds."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from converter.candidates import Candidate, Report
from converter.report import render
from converter.report.twin import twins_of
from tests.converter.reports import FLOAT, candidate, report

_RECIPE = "static_wi8_au8_pc_auto"


def _kind(kind: str, nodes: int, elements: int, differ: int, worst: int) -> dict[str, object]:
    return {
        "op_type": kind, "nodes": nodes, "elements": elements, "equal": elements - differ,
        "worst_steps": worst, "kept": worst <= 1,
    }  # fmt: skip


def _node(kind: str, node: str, elements: int, worst: int, reason: str) -> dict[str, object]:
    verdict = "unmeasured" if not elements else "one_step" if worst <= 1 else "worse"
    return {
        "op_type": kind, "node": node, "elements": elements, "equal": max(0, elements - 5),
        "verdict": verdict, "worst_steps": worst, "reason": reason,
    }  # fmt: skip


_FIRST = {"tensor": "t7", "node": "up", "op_type": "Resize", "equal": 0.95, "worst_steps": 1}
_PROOF: dict[str, object] = {
    "runtimes": ["onnxruntime 1", "ai-edge-litert 2"],
    "samples": 8,
    "kinds": [_kind("Conv", 9, 1000, 0, 0), _kind("Resize", 1, 100, 5, 1), _kind("Mul", 2, 100_000, 1, 3)],
    "nodes": [
        _node("Resize", "up", 100, 1, ""),
        _node("Mul", "gate", 100_000, 3, "it rounds <twice>"),
        _node("Flatten", "flat", 0, 0, "nothing computes"),
    ],
    "scales": {"tensors": 40, "equal": 39, "exceptions": ["w: scale differs"]},
    "end": {"samples": 8, "outputs_equal": 0.99999, "argmax_agreement": 1.0, "first_divergence": _FIRST},
    "counts": {"equal": 9, "one_step": 1, "worse": 1, "unmeasured": 1},
    "notes": ["time ran out"],
}


def _twin(**figures: object) -> Candidate:
    known = {
        "runtime": "ai-edge-litert",
        "format": "tflite",
        "twin_of": f"onnxruntime/{_RECIPE}_twin",
    } | figures
    return candidate(f"{_RECIPE}_twin", **known)


def _report(twin: Candidate, **fields: object) -> Report:
    plain = candidate(_RECIPE, accuracy=0.934, agreement=0.99, latency_ratio=0.33, size_bytes=1000)
    paired = candidate(f"{_RECIPE}_twin", accuracy=0.936, agreement=0.98, latency_ratio=0.34, size_bytes=1000)
    return report(FLOAT, plain, paired, twin, chosen=3, **fields)


def test_the_proof_is_a_table_with_what_differs_by_name() -> None:
    twin = _twin(accuracy=0.936, agreement=0.98, latency_ratio=0.3, size_bytes=900)
    one = _report(twin, parity={twin.id: _PROOF})
    (found,) = twins_of(one)
    said = " ".join(found.facts)
    for text in (
        "39 of 40 tensors equal",
        "9 equal, 1 at most one step apart, 1 further, 1 not measured",
        "99.99% of the outputs'",
        "first tensor that diverges is t7, made by Resize up",
        "w: scale differs",
        "time ran out",
    ):
        assert text in said, text
    assert [(kind.name, kind.equal, kind.one_step, kind.worst, kind.good) for kind in found.kinds] == [
        ("Conv", "100%", "all", "0", True),
        ("Resize", "95.00%", "all", "1", True),
        ("Mul", "99.99%", "not all", "3", False),
    ]
    assert [text.split(":")[0] for text in found.odd] == ["Mul gate", "Resize up", "Flatten flat"]
    assert "it rounds <twice>" in found.odd[0]
    page = render(one).decode()
    assert 'id="twin"' in page
    assert "it rounds &lt;twice&gt;" in page


def test_what_the_twin_costs_stands_beside_the_recipe_without_its_constraints() -> None:
    twin = _twin(accuracy=0.937, agreement=0.98, latency_ratio=0.3, size_bytes=900)
    (found,) = twins_of(_report(twin))
    assert [row.id for row in found.cost] == [
        f"onnxruntime/{_RECIPE}", f"onnxruntime/{_RECIPE}_twin", f"ai_edge_litert/{_RECIPE}_twin",
    ]  # fmt: skip
    first, second = found.differences
    assert "accuracy 0.9340 to 0.9360, agreement 0.9900 to 0.9800, latency to FP32 0.33 to 0.34" in first
    assert "accuracy 0.9360 to 0.9370" in second
    assert second.endswith("accuracy 0.9360 to 0.9370, latency to FP32 0.34 to 0.30, size 1.00 KB to 900 B.")
    assert "size" not in first
    assert "unknown" in found.facts[0]


def test_where_there_is_no_twin_the_reason_stands() -> None:
    twin = _twin(status="error", reason="TFLiteError: LSTM x cannot be written", twin_of=None)
    (found,) = twins_of(_report(twin))
    assert found.facts == ("There is no twin: TFLiteError: LSTM x cannot be written.",)
    assert (found.kinds, found.odd, found.differences) == ((), (), ())


def test_a_report_without_a_twin_has_no_such_section() -> None:
    page = render(report(FLOAT, candidate(_RECIPE))).decode()
    assert not re.search(r'id="twin"|href="#twin"', page)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(_PROOF)), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*_PROOF, "other"]), _ANY))
def test_whatever_another_version_wrote_the_page_is_made(proof: dict[str, object]) -> None:
    twin = _twin()
    assert render(_report(twin, parity={twin.id: proof}))
