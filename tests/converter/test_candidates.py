"""The choice among candidates: its rules as properties, and mutants of the code that the properties catch."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

import converter.candidates as real
from converter.candidates import Candidate, Fusion, evidence, samples_needed
from wire.figures import Interval, PairedCounts
from wire.sla import Limits, parse_limits

Choose = Callable[..., real.Choice]


class Table:
    """A random table of judged rows with an SLA's objective; `seed` reproduces it."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.baseline = _row(rng, "float", fp32=True)
        self.quantized = [_row(rng, f"q{i}") for i in range(rng.randint(0, 5))]
        if rng.random() < 0.6:
            self.quantized = [_of_runtime(row, rng.choice(_RUNTIMES)) for row in self.quantized]
        self.of_class = rng.random() < 0.6
        objective = rng.choice(["latency", "latency", "size", "energy"])
        fallback = rng.choice(["previous_slot", "fp32_unbounded"])
        self.limits: Limits = parse_limits({"objective": objective, "fallback": fallback})

    @property
    def passing(self) -> list[Candidate]:
        return [row for row in self.quantized if row.status == "pass"]


_RUNTIMES = ("onnxruntime", "ai-edge-litert")


def _of_runtime(row: Candidate, runtime: str) -> Candidate:
    return structs.replace(row, runtime=runtime, id=f"{runtime.replace('-', '_')}/{row.recipe}")


def _row(rng: random.Random, name: str, *, fp32: bool = False) -> Candidate:
    ratio = None if rng.random() < 0.15 else rng.choice([0.4, 0.5, 0.9, 1.0, 1.5, 2.0])
    half = rng.choice([0.01, 0.05, 0.3])
    return Candidate(
        id=f"onnxruntime/{name}", recipe=name, runtime="onnxruntime", precision="int8",
        status=rng.choice(["pass", "pass", "fail", "error"]),
        size_bytes=rng.choice([100, 200, 300]),
        agreement=1.0 if fp32 else rng.choice([0.9, 0.95, 0.99]),
        latency_ratio=1.0 if fp32 else ratio,
        latency_ratio_ci95=None if fp32 or ratio is None else (ratio - half, ratio + half),
        fusion=Fusion(integer=rng.choice([0, 3, 3]), float=1, qdq_left=2),
    )  # fmt: skip


def hold(choose: Choose, table: Table) -> None:
    """Every rule of DESIGN.md section 7 that a choice has to keep."""
    choice = choose(table.baseline, table.quantized, table.limits, host_of_target_class=table.of_class)
    passing, fp32 = table.passing, table.baseline
    fp32_passes = fp32.status == "pass"
    assert (choice.chosen is None) == (not passing and not fp32_passes)
    if choice.chosen is None:
        assert choice.carried == ()
        return
    assert choice.reason
    assert choice.carried[0] == choice.chosen
    assert len(set(choice.carried)) == len(choice.carried)
    assert fp32.id not in choice.carried[1:-1]
    allowed = fp32_passes or (table.limits.fallback == "fp32_unbounded" and fp32.status == "fail")
    assert (fp32.id in choice.carried) == allowed
    assert set(choice.carried) - {fp32.id} <= {row.id for row in passing}
    _the_other_runtime(table, choice)
    if choice.chosen == fp32.id:
        assert fp32_passes
        _fp32_only_where_quantizing_loses(table)
        return
    chosen = next(row for row in passing if row.id == choice.chosen)
    (_best_here if table.of_class else _best_elsewhere)(table, chosen, choice)


def _the_other_runtime(table: Table, choice: real.Choice) -> None:
    """A device that has only the other runtime finds what is best there, if anything passes there."""
    rows = {row.id: row for row in (table.baseline, *table.quantized)}
    mine = rows[choice.chosen or ""].runtime
    fp32 = table.baseline
    others = [row for row in table.passing if row.runtime != mine]
    spared = table.of_class and fp32.status == "pass" and table.limits.objective != "size"
    if spared and fp32.runtime != mine:
        others = [row for row in others if not _shown_slower(row)]
    carried = [rows[key] for key in choice.carried if key != fp32.id and rows[key].runtime != mine]
    assert len(carried) == min(1, len(others))
    if not others:
        return
    if table.limits.objective == "size":
        assert carried[0].size_bytes == min(row.size_bytes or 0 for row in others)
    elif not table.of_class:
        fused = [row for row in others if row.fusion is not None and row.fusion.integer > 0]
        assert carried[0] is (fused or others)[0]
    elif known := [row for row in others if row.latency_ratio is not None]:
        lead = min(known, key=lambda row: row.latency_ratio or 0.0)
        assert _span(carried[0])[0] <= max(_span(lead)[1], (lead.latency_ratio or 0.0) * 1.05)


def _span(row: Candidate) -> tuple[float, float]:
    assert row.latency_ratio is not None
    return row.latency_ratio_ci95 or (row.latency_ratio, row.latency_ratio)


def _shown_slower(row: Candidate) -> bool:
    return row.latency_ratio is not None and _span(row)[0] > 1.0


def _fp32_only_where_quantizing_loses(table: Table) -> None:
    if table.passing:
        assert table.of_class
        assert table.limits.objective != "size"
        assert all(_shown_slower(row) for row in table.passing)


def _best_here(table: Table, chosen: Candidate, _choice: real.Choice) -> None:
    rows = table.passing
    if table.limits.objective == "size":
        assert chosen.size_bytes == min(row.size_bytes or 0 for row in rows)
        rows = [row for row in rows if row.size_bytes == chosen.size_bytes]
    elif table.baseline.status == "pass":
        assert not _shown_slower(chosen)
        rows = [row for row in rows if not _shown_slower(row)]
    measured = [row for row in rows if row.latency_ratio is not None]
    if not measured:
        assert chosen is rows[0]
        return
    assert chosen.latency_ratio is not None
    lead = min(measured, key=lambda row: row.latency_ratio or 0.0)
    reach = max(_span(lead)[1], (lead.latency_ratio or 0.0) * 1.05)
    ties = [row for row in measured if _span(row)[0] <= reach]
    assert chosen in ties
    assert chosen.agreement == max(row.agreement or 0.0 for row in ties)
    equals = [row for row in ties if row.agreement == chosen.agreement]
    assert chosen.size_bytes == min(row.size_bytes or 0 for row in equals)


def _best_elsewhere(table: Table, chosen: Candidate, choice: real.Choice) -> None:
    carried = [key for key in choice.carried if key != table.baseline.id]
    assert len(carried) == min(2, len(table.passing))
    if table.limits.objective == "size":
        assert chosen.size_bytes == min(row.size_bytes or 0 for row in table.passing)
        return
    fused = [row for row in table.passing if row.fusion is not None and row.fusion.integer > 0]
    order = fused + [row for row in table.passing if row not in fused]
    assert carried[0] == order[0].id
    if all(row.runtime == chosen.runtime for row in table.passing):
        assert carried == [row.id for row in order[:2]]


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_the_choice_keeps_its_rules(seed: int) -> None:
    hold(real.choose, Table(seed))


MUTANTS = (
    ('row.status == "pass"]', 'row.status != "error"]'),
    ("fp32_passes or limits", "fp32_passes and limits"),
    ('fp32_passes and limits.objective != "size"', 'limits.objective != "size"'),
    ('allowed and baseline.status != "error"', "allowed"),
    ("row in worth or row.runtime != baseline.runtime", "True"),
    ("row in worth or row.runtime != baseline.runtime", "row in worth"),
    ("(baseline.id, *beside)", "(baseline.id,)"),
    ("if row.runtime != runtime]", "if row.runtime == runtime]"),
    ("best.runtime, limits, measured=host_of_target_class", "best.runtime, limits, measured=False"),
    ("not beside and not host_of_target_class", "not host_of_target_class"),
    ("_ratio_interval(row).low > 1.0", "_ratio_interval(row).high > 1.0"),
    ("_ratio_interval(row).low <= high", "_ratio_interval(row).low < lead.latency_ratio"),
    ("-(row.agreement or 0.0)", "(row.agreement or 0.0)"),
    ("ordered[1:2]", "ordered[1:1]"),
    ("row.fusion.integer == 0", "row.fusion.integer > 0"),
    ("smallest = min(", "smallest = max("),
    ("(best.id, *beside, *fp32)", "(*fp32, best.id, *beside)"),
)


@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_mutant_breaks_a_rule(old: str, new: str) -> None:
    source = Path(real.__file__).read_text()
    assert old in source, "the mutant no longer applies: write another"
    mutant = ModuleType("mutant_candidates")
    sys.modules[mutant.__name__] = mutant
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
        killed = any(_breaks(mutant.choose, seed) for seed in range(2000))
    finally:
        del sys.modules[mutant.__name__]
    assert killed


def _breaks(choose: Choose, seed: int) -> bool:
    try:
        hold(choose, Table(seed))
    except AssertionError:
        return True
    return False


def test_evidence_needs_the_whole_interval() -> None:
    assert evidence(0.9, Interval(0.9, 0.95)) == "proven"
    assert evidence(0.9, Interval(0.8, 0.89)) == "refuted"
    assert evidence(0.9, Interval(0.89, 0.95)) == "unproven"
    assert evidence(0.9, None) == "unproven"


def test_samples_needed_is_the_documented_figure() -> None:
    """DESIGN.md section 7: one point at 2% discordance needs about 1,235 samples for 80% power."""
    counts = PairedCounts(both=980, candidate_only=10, reference_only=10, neither=0)
    needed = samples_needed(counts, 1.0 - 0.01 / 0.99)
    assert needed is not None
    assert abs(needed - 1236) <= 2


def test_samples_needed_is_unknown_where_no_number_would_do() -> None:
    worse = PairedCounts(both=900, candidate_only=0, reference_only=50, neither=50)
    equal = PairedCounts(both=900, candidate_only=0, reference_only=0, neither=100)
    nothing = PairedCounts(both=0, candidate_only=0, reference_only=0, neither=0)
    assert samples_needed(worse, 0.99) is None
    assert samples_needed(equal, 0.99) is None
    assert samples_needed(nothing, 0.99) is None


@pytest.mark.parametrize(("slower", "chosen"), [(0.417, "exact"), (0.422, "quick")])
def test_within_five_percent_the_better_agreement_wins(slower: float, chosen: str) -> None:
    def row(name: str, ratio: float, agreement: float) -> Candidate:
        return Candidate(
            id=name, recipe=name, runtime="onnxruntime", precision="int8", status="pass", size_bytes=100,
            agreement=agreement, latency_ratio=ratio, latency_ratio_ci95=(ratio - 0.001, ratio + 0.001),
        )  # fmt: skip

    rows = [row("quick", 0.4, 0.97), row("exact", slower, 0.99)]
    choice = real.choose(row("float", 1.0, 1.0), rows, Limits(), host_of_target_class=True)
    assert choice.chosen == chosen
