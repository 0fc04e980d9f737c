"""PURE. Figures and findings in words, for people.

For: one spelling of every figure in the table on the terminal and in the report, "unknown" where it was
not measured, and the sentences that say what was chosen, why, and why the others were not.
Not for: deciding anything; that was done (`converter.candidates`, `wire.sla`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from converter.candidates import Candidate, Report

UNKNOWN = "unknown"

_KILO = 1000.0
_RUNTIMES = {"onnxruntime": "ORT", "ai-edge-litert": "LiteRT", "tflite-runtime": "tflite-rt"}
_LIMIT_NAMES = {
    "latency_ms_p95": "latency p95",
    "memory_bytes": "peak memory",
    "energy_mj": "energy per inference",
    "size_bytes": "size",
    "agreement": "agreement",
    "accuracy": "accuracy",
    "accuracy_ratio": "accuracy",
}


class Note(Struct, frozen=True, kw_only=True):
    """A finding: what it is called, what it says, and what it cost where that is known."""

    title: str
    text: str = ""
    cost: str = ""


def number(value: float | None, digits: int) -> str:
    """With that many digits after the point."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def size(value: int | None) -> str:
    """Bytes with three significant digits and a decimal unit."""
    if value is None:
        return UNKNOWN
    scaled, units = float(value), ["B", "KB", "MB", "GB"]
    while scaled >= 999.5 and len(units) > 1:
        scaled /= _KILO
        units.pop(0)
    if units[0] == "B":
        return f"{value} B"
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {units[0]}"


def milliseconds(value: float | None) -> str:
    """With three significant digits."""
    if value is None:
        return UNKNOWN
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"


def span(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval; empty where there is none."""
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def factor(value: float | None) -> str:
    """How many times something, with two digits after the point where that says anything."""
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value < 1000 else f"{value:.1e}"


def ratio(row: Candidate) -> str:
    """Latency as a ratio to FP32."""
    return UNKNOWN if row.latency_ratio is None else f"{factor(row.latency_ratio)} x"


def where_timed(row: Candidate) -> str:
    """What a latency figure holds for."""
    if row.latency_ms_p50 is None:
        return ""
    if row.latency_scope == "target":
        return "on this host, which is of the target's class"
    return "host, not the target"


def latency_label(report: Report) -> str:
    """What the report's latency figures hold for, as one label for all of them."""
    timed = [row for row in report.candidates if row.latency_ms_p50 is not None]
    if not timed:
        return "not measured"
    scopes = {row.latency_scope for row in timed}
    return "measured on a host of the target's class" if scopes == {"target"} else "host, not the target"


def row_of(report: Report, key: str | None) -> Candidate | None:
    """The row of that id."""
    return next((row for row in report.candidates if row.id == key), None)


def title(row: Candidate) -> str:
    """What a row is called in a sentence: its recipe, with its runtime where that is not ONNX Runtime."""
    return row.recipe if row.runtime == "onnxruntime" else row.id


def runtime(row: Candidate) -> str:
    """A short word for it."""
    return _RUNTIMES.get(row.runtime, row.runtime)


def several_runtimes(report: Report) -> bool:
    """Whether a row's recipe alone does not say which row it is."""
    return len({row.runtime for row in report.candidates}) > 1


def metric_name(report: Report) -> str:
    """What the task's figure of merit is called, in lower case."""
    name = None if report.metric is None else report.metric.get("name")
    return "accuracy" if name in {None, "top1"} else plain(name)


def lower_is_better(report: Report) -> bool:
    """Whether the figure of merit is an error."""
    return report.metric is not None and report.metric.get("direction") == "lower"


def headline(report: Report) -> str:
    """What came of it, in one line."""
    chosen = row_of(report, report.chosen)
    if chosen is None:
        return "No candidate passes the SLA"
    if chosen.id == report.baseline.id:
        return "FP32 stays"
    return f"Chosen: {title(chosen)}"


def facts(report: Report) -> tuple[str, ...]:
    """What is known of the choice, or of what came nearest, a sentence each."""
    chosen = row_of(report, report.chosen)
    said: tuple[str, ...]
    if chosen is None:
        said = ("No bundle was made; every candidate's reason stands in the table.", _nearest(report))
    else:
        said = (
            _difference(report, chosen), _evidence(chosen), _timed(chosen), _left_to_device(chosen)
        )  # fmt: skip
    said = (*said, not_run(report.target_profile or {}))
    found = findings(report.calibration)
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    noted = f"The calibration set has findings: {found[0].title}{more}." if found else ""
    return tuple(text for text in (*said, noted) if text)


def not_run(profile: Mapping[str, object]) -> str:
    """That nothing was compiled or run for the target, where a compiler stands in between; else empty."""
    rule = profile.get("compiler")
    compiler = rule.get("value") if isinstance(rule, Mapping) else None
    if not isinstance(compiler, Mapping):
        return ""
    return f"Not compiled, not run: {plain(compiler.get('words') or compiler.get('name') or UNKNOWN)}."


def _nearest(report: Report) -> str:
    """The best that there was, so that a reader sees how far the limits are away."""
    known = [row for row in report.candidates if row.accuracy is not None and row.id != report.baseline.id]
    if not known:
        return ""
    turn = -1.0 if lower_is_better(report) else 1.0
    best = max(known, key=lambda row: turn * (row.accuracy or 0.0))
    name, base = metric_name(report), report.baseline.accuracy
    return (
        f"Of the other candidates {title(best)} has the best {name}: {number(best.accuracy, 4)} against "
        f"FP32's {number(base, 4)}."
    )


def _difference(report: Report, chosen: Candidate) -> str:
    if chosen.id == report.baseline.id or chosen.accuracy_delta_ci95 is None:
        return ""
    low, high = chosen.accuracy_delta_ci95
    return (
        f"Compared on the same {samples(chosen)}, the difference in {metric_name(report)} from FP32 lies "
        f"between {low:+.4f} and {high:+.4f} (95%)."
    )


def samples(row: Candidate) -> str:
    """How many there were."""
    return "samples, number unknown" if row.n_samples is None else f"{row.n_samples:,} samples"


def _evidence(chosen: Candidate) -> str:
    if chosen.accuracy_evidence == "proven":
        return "The samples prove the accuracy limit: the whole 95% interval keeps it."
    if chosen.accuracy_evidence == "refuted":
        return "The samples refute the accuracy limit: the whole 95% interval misses it."
    if chosen.accuracy_evidence is None:
        return "The SLA sets no limit on accuracy."
    text = f"The accuracy limit is met, and {samples(chosen)} cannot prove it"
    if chosen.samples_needed is None:
        return f"{text}."
    return f"{text}: about {chosen.samples_needed:,} would."


def _timed(chosen: Candidate) -> str:
    if chosen.latency_ms_p50 is None:
        return "Latency is unknown here; the device measures it."
    if chosen.latency_scope == "host":
        return "Latency was measured on this host, not the target: the device has the last word."
    return "Latency was measured on this host, which is of the target's class."


def _left_to_device(row: Candidate) -> str:
    return f"The device itself decides: {limit_names(row.deferred)}." if row.deferred else ""


def limit_names(limits: Iterable[str]) -> str:
    """Limits of an SLA in words."""
    return ", ".join(_LIMIT_NAMES.get(name, name) for name in limits)


def deferred_by_all(report: Report) -> tuple[str, ...]:
    """Limits that the device decides for every row that was judged: said once, not in each row."""
    judged = [row.deferred for row in report.candidates if row.status != "error"]
    return tuple(name for name in judged[0] if all(name in one for one in judged)) if judged else ()


def reason(row: Candidate, common: Iterable[str] = ()) -> str:
    """Why it failed; else what is left to the device, and how sure its accuracy is.

    Args:
        row: a candidate.
        common: deferred limits that are said elsewhere.
    """
    parts = [row.reason] if row.reason else []
    own = [name for name in row.deferred if name not in set(common)]
    if own:
        parts.append(f"device decides {limit_names(own)}")
    if row.status == "pass" and row.accuracy_evidence == "unproven":
        needed = f"; about {row.samples_needed:,} samples would prove it" if row.samples_needed else ""
        parts.append(f"accuracy limit met, not proven{needed}")
    return "; ".join(parts)


def decisions(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """By candidate what was decided on the way; what holds for all quantized ones is said once, first."""
    base = report.baseline.id
    made = [row.decisions for row in report.candidates if row.status != "error" and row.id != base]
    common = tuple(text for text in made[0] if all(text in one for one in made)) if len(made) > 1 else ()
    said = [("every quantized candidate", common)] if common else []
    for row in report.candidates:
        own = tuple(text for text in row.decisions if text not in common)
        if own:
            said.append((title(row), own))
    return said


def passed_over(report: Report, row: Candidate) -> str:
    """Where a row that passes stands beside the chosen one; empty for every other row."""
    chosen = row_of(report, report.chosen)
    if chosen is None or row.id == chosen.id or row.status != "pass":
        return ""
    pairs = (
        (ratio(row), ratio(chosen), "latency"),
        (number(row.agreement, 4), number(chosen.agreement, 4), "agreement"),
        (size(row.size_bytes), size(chosen.size_bytes), "size"),
    )
    said = [f"{what} {mine} against {theirs}" for mine, theirs, what in pairs if mine != theirs]
    return "not chosen: " + (", ".join(said) if said else "no figure tells them apart")


def findings(calibration: Mapping[str, object]) -> tuple[Note, ...]:
    """The calibration set's findings by name, whatever version wrote them."""
    notes = [_outlier(one) for one in _mappings(calibration.get("outliers"))]
    for one in _mappings(calibration.get("findings")):
        left = dict(one)
        title = _taken(left, "name", "code", "kind") or "finding"
        text = _taken(left, "text", "message", "words", "reason")
        cost = _taken(left, "cost", "cost_text")
        rest = ", ".join(f"{key} {plain(value)}" for key, value in left.items() if value is not None)
        notes.append(Note(title=title, text="; ".join(filter(None, (text, rest))), cost=cost))
    return tuple(notes)


def zeros(one: Mapping[str, object]) -> str:
    """What one weight's zeros could be good for."""
    share = one.get("zeros")
    said = [f"{share:.0%} zeros" if isinstance(share, float | int) else "zeros, share unknown"]
    if one.get("channels_zero"):
        whole, filters = plain(one["channels_zero"]), plain(one.get("channels", UNKNOWN))
        said.append(f"{whole} of {filters} filters hold nothing else")
    if one.get("two_of_four"):
        said.append("two of every four neighbours, as sparse tensor cores take them")
    return f"{plain(one.get('tensor', UNKNOWN))}: {', '.join(said)}"


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _taken(left: dict[str, object], *keys: str) -> str:
    for key in keys:
        value = left.pop(key, None)
        if value is not None:
            return plain(value)
    return ""


def plain(value: object) -> str:
    """Any JSON value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items() if one not in (None, [], ()))
    return str(value)


def _outlier(one: Mapping[str, object]) -> Note:
    times, largest = one.get("times_median"), one.get("largest")
    return Note(
        title=f"outlier: sample {plain(one.get('sample', UNKNOWN))} of {plain(one.get('input', UNKNOWN))}",
        text=f"its largest value {plain(largest)} is {plain(times)} times the median sample's; "
        "alone it stretches the range that every 8-bit step is cut from",
    )
