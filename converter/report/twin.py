"""PURE. The twin in words: how near the TFLite file is to its ONNX graph, and what its constraints cost.

For: the report's section on parity, from `candidates.json` alone, whatever version wrote it.
Not for: proving (`converter.tflite.parity`) or measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from converter.candidates import Candidate, Report
from converter.report import words

_ODD_NAMED_MAX = 20


class Kind(Struct, frozen=True, kw_only=True):
    """All operators of one type, in words."""

    name: str
    nodes: str
    equal: str
    one_step: str
    worst: str
    good: bool


class Twin(Struct, frozen=True, kw_only=True):
    """One twin.

    Attributes:
        title: of its TFLite row.
        facts: sentences on scales, operators and whole runs; that nothing is known where nothing was proved.
        kinds: by operator type.
        odd: operators that are not equal, with the reason where there is one.
        cost: rows to compare: the same recipe without the twin's constraints, and both of the twin.
        differences: what the constraints cost, in sentences.
    """

    title: str
    facts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    odd: tuple[str, ...]
    cost: tuple[Candidate, ...]
    differences: tuple[str, ...]


def twins_of(report: Report) -> list[Twin]:
    """Every twin that is a row for LiteRT, in the table's order."""
    rows = [row for row in report.candidates if row.format == "tflite" and _is_pair(row.recipe)]
    return [_twin(report, row) for row in rows]


def _is_pair(recipe: str) -> bool:
    return recipe.endswith("_twin") or recipe.startswith("given_")


def _twin(report: Report, row: Candidate) -> Twin:
    proof = report.parity.get(row.id, {})
    free = row.recipe.removesuffix("_twin")
    plain = None if free == row.recipe else words.row_of(report, f"onnxruntime/{free}")
    paired = words.row_of(report, row.twin_of)
    return Twin(
        title=words.title(row),
        facts=_facts(row, proof),
        kinds=tuple(_kind(one) for one in _mappings(proof.get("kinds"))),
        odd=_odd(_mappings(proof.get("nodes"))),
        cost=tuple(one for one in (plain, paired, row) if one is not None),
        differences=tuple(_differences(report, plain, paired, row)),
    )


def _facts(row: Candidate, proof: Mapping[str, object]) -> tuple[str, ...]:
    if row.status == "error":
        return (f"There is no twin: {row.reason}.",)
    if not proof:
        return ("Parity is unknown: this conversion holds no proof of it.",)
    scales, end, counts = (_mapping(proof.get(key)) for key in ("scales", "end", "counts"))
    told = [_scales(scales), _operators(proof, counts), _whole_runs(end), _divergence(end)]
    told += [f"Not equal: {one}" for one in _texts(scales.get("exceptions"))]
    told += _texts(proof.get("notes"))
    if proof.get("runtimes"):
        told.append(f"Compared: {words.plain(proof['runtimes'])}")
    return tuple(f"{text}." for text in told)


def _scales(scales: Mapping[str, object]) -> str:
    of_all = f"{_n(scales.get('equal'))} of {_n(scales.get('tensors'))}"
    return f"Scales and zero points: {of_all} tensors equal, bit by bit"


def _operators(proof: Mapping[str, object], counts: Mapping[str, object]) -> str:
    return (
        f"Single operators, both runtimes given the same stored inputs of {_n(proof.get('samples'))} "
        f"samples: {_n(counts.get('equal'))} equal, {_n(counts.get('one_step'))} at most one step apart, "
        f"{_n(counts.get('worse'))} further, {_n(counts.get('unmeasured'))} not measured by themselves"
    )


def _whole_runs(end: Mapping[str, object]) -> str:
    return (
        f"Whole runs on {_n(end.get('samples'))} samples: {_share(end.get('outputs_equal'))} of the outputs' "
        f"elements equal{_argmax(end.get('argmax_agreement'))}"
    )


def _argmax(value: object) -> str:
    return "" if value is None else f", the largest one in the same place in {_share(value)}"


def _divergence(end: Mapping[str, object]) -> str:
    first = _mapping(end.get("first_divergence"))
    if not first:
        return "No stored tensor diverges"
    return (
        f"The first tensor that diverges is {words.plain(first.get('tensor', words.UNKNOWN))}, made by "
        f"{words.plain(first.get('op_type', words.UNKNOWN))} {words.plain(first.get('node', ''))}: "
        f"{_share(first.get('equal'))} of its elements are equal, the worst is "
        f"{_n(first.get('worst_steps'))} steps apart"
    )


def _kind(one: Mapping[str, object]) -> Kind:
    elements, equal, worst = (one.get(key) for key in ("elements", "equal", "worst_steps"))
    known = isinstance(elements, int) and isinstance(equal, int) and elements
    return Kind(
        name=words.plain(one.get("op_type", words.UNKNOWN)),
        nodes=_n(one.get("nodes")),
        equal=_share(equal / elements) if known else words.UNKNOWN,  # type: ignore[operator]
        one_step=words.UNKNOWN if not isinstance(worst, int) else "all" if worst <= 1 else "not all",
        worst=_n(worst),
        good=one.get("kept") is True,
    )


def _odd(nodes: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """By name, at most so many, those that are furthest off first."""
    ordered = sorted(nodes, key=lambda one: -_whole(one.get("worst_steps")))
    said = [_node(one) for one in ordered[:_ODD_NAMED_MAX]]
    left = len(ordered) - len(said)
    return (*said, *((f"and {left} more; candidates.json has all of them",) if left else ()))


def _node(one: Mapping[str, object]) -> str:
    name = f"{words.plain(one.get('op_type', words.UNKNOWN))} {words.plain(one.get('node', ''))}".strip()
    why = words.plain(one.get("reason") or "")
    if one.get("verdict") == "unmeasured":
        return f"{name}: not measured by itself{f', {why}' if why else ''}"
    elements, equal = _whole(one.get("elements")), _whole(one.get("equal"))
    shown = (
        f"{name}: {elements - equal:,} of {elements:,} elements differ, at most {_n(one.get('worst_steps'))}"
    )
    steps = "step" if one.get("worst_steps") == 1 else "steps"
    return f"{shown} {steps}{f'; {why}' if why else ''}"


def _differences(
    report: Report, plain: Candidate | None, paired: Candidate | None, row: Candidate
) -> Iterable[str]:
    """What the constraints cost against the recipe without them, and what the other runtime makes of it."""
    if plain is not None and paired is not None and "error" not in {plain.status, paired.status}:
        said = ", ".join(_changes(report, plain, paired))
        yield f"The constraints themselves, both in ONNX Runtime: {said or 'no figure differs'}."
    if paired is not None and "error" not in {paired.status, row.status}:
        said = ", ".join(_changes(report, paired, row))
        yield f"The same model in LiteRT instead of ONNX Runtime: {said or 'no figure differs'}."


def _changes(report: Report, old: Candidate, new: Candidate) -> Iterable[str]:
    """What differs as it is shown; a figure that is not known of both says so."""
    pairs = (
        (words.metric_name(report), *(words.number(row.accuracy, 4) for row in (old, new))),
        ("agreement", *(words.number(row.agreement, 4) for row in (old, new))),
        ("latency to FP32", *(words.number(row.latency_ratio, 2) for row in (old, new))),
        ("size", *(words.size(row.size_bytes) for row in (old, new))),
    )
    for name, before, after in pairs:
        if words.UNKNOWN in {before, after}:
            yield f"{name} unknown"
        elif before != after:
            yield f"{name} {before} to {after}"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _texts(value: object) -> list[str]:
    return [words.plain(one) for one in value] if isinstance(value, list | tuple) else []


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _n(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else words.UNKNOWN


def _share(value: object) -> str:
    """A share that only reads 100% where it is all of it."""
    if not isinstance(value, int | float):
        return words.UNKNOWN
    if value in {0, 1}:
        return f"{value:.0%}"
    return f"{min(max(value, 0.0001), 0.9999):.2%}"
