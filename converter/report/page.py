"""The report as one self-contained page.

For: `render()`: `candidates.json` in, HTML out, with styles and charts within it, readable without a
network, on a phone, in the dark and on paper.
Not for: deciding or measuring anything.

Charts are SVG of our own from Jinja2 macros: Jinja2 with MarkupSafe is 1.4 MB installed and a page of
four candidates 30 KB; matplotlib would be 101 MB more, its SVG cannot follow the reader's colour scheme,
and its dots cannot be pointed at.

Autoescape is on for every template: names of models, tensors and files are other people's text. The page
holds no script, and its Content-Security-Policy allows none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct

from converter.candidates import Report
from converter.report import charts, words
from converter.report.twin import twins_of

PAGE_NAME = "report.html"

_BARS_MAX = 30
_VALUE_CHARS_MAX = 400
_CONFIDENCE = {"V": "read or measured", "S": "search excerpt", "M": "from memory"}
_PROVENANCE_NAMES = {
    "source_model_sha256": "model SHA-256",
    "calibration_sha256": "calibration set SHA-256",
    "validation_sha256": "validation set SHA-256",
    "sla_sha256": "SLA SHA-256",
}


class Rule(Struct, frozen=True, kw_only=True):
    """One rule of a target, in words."""

    name: str
    value: str
    confidence: str
    source: str


class Bar(Struct, frozen=True, kw_only=True):
    """One tensor of the sensitivity chart; `percent` of the longest bar."""

    tensor: str
    kind: str
    text: str
    percent: float
    negative: bool


def render(report: Report) -> bytes:
    """The page, UTF-8."""
    return _environment().get_template("page.html").render(_view(report)).encode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _view(report: Report) -> dict[str, object]:
    """Everything that the template shows."""
    chosen, base = words.row_of(report, report.chosen), report.baseline
    bars = sensitivity_bars(report.sensitivity or ())
    plot = charts.pareto(report)
    shows = {
        "entropy": any(row.entropy_bytes is not None for row in report.candidates),
        "top5": any(row.top5 is not None for row in report.candidates),
    }
    return {
        "report": report,
        "words": words,
        "base": base,
        "chosen": chosen,
        "headline": words.headline(report),
        "facts": words.facts(report),
        "metric": words.metric_name(report),
        "lower": words.lower_is_better(report),
        "size_ratio": _size_ratio(report),
        "pareto": plot,
        "cliff": charts.cliff(report),
        "timed": any(row.latency_ratio is not None for row in report.candidates),
        "fallen": [] if plot is None else _fallen(report, plot),
        "families": sorted({charts.precision_of(row) for row in report.candidates}, key=_family_order),
        "box": {
            "width": charts.WIDTH, "height": charts.HEIGHT, "left": charts.LEFT, "right": charts.RIGHT,
            "top": charts.TOP, "bottom": charts.BOTTOM,
        },
        "latency_label": words.latency_label(report),
        "shows": shows,
        "common": words.deferred_by_all(report),
        "unmeasured": [
            name
            for name, shown in (("entropy-coded size", shows["entropy"]), ("top-5", shows["top5"]))
            if not shown
        ],
        "bars": bars[:_BARS_MAX],
        "bars_left": max(0, len(bars) - _BARS_MAX),
        "zeros": [words.zeros(one) for one in (report.sparsity or ())[:_BARS_MAX]],
        "findings": words.findings(report.calibration),
        "inspected": bool({"findings", "outliers"} & set(report.calibration)),
        "calibration_facts": _calibration_facts(report.calibration),
        "decided": words.decisions(report),
        "twins": twins_of(report),
        "several": words.several_runtimes(report),
        "rules": rules_of(report.target_profile or {}),
        "target_facts": _target_facts(report.target_profile or {}),
        "provenance": list(_provenance(report.provenance)),
    }  # fmt: skip


def _fallen(report: Report, plot: charts.Chart) -> list[str]:
    """Rows below the Pareto plot, by number, with their figure."""
    rows = dict(enumerate(report.candidates, start=1))
    below = sorted(int(dot.label) for dot in plot.dots if dot.below)
    return [f"{i} at {words.number(rows[i].accuracy, 4)}" for i in below]


def _family_order(name: str) -> tuple[int, str]:
    known = name in charts.PRECISIONS
    return (charts.PRECISIONS.index(name) if known else len(charts.PRECISIONS), name)


def _size_ratio(report: Report) -> str:
    chosen, base = words.row_of(report, report.chosen), report.baseline
    if chosen is None or chosen.size_bytes is None or not base.size_bytes:
        return ""
    return f"{chosen.size_bytes / base.size_bytes:.2f}"


def sensitivity_bars(entries: Iterable[Mapping[str, object]]) -> list[Bar]:
    """Worst first; an entry whose effect is unknown stands last, without a bar."""
    read = [(one, _float(one.get("effect_db"))) for one in entries]
    longest = max((abs(effect) for _, effect in read if effect is not None), default=0.0) or 1.0
    read.sort(key=lambda pair: (pair[1] is None, -(pair[1] or 0.0)))
    bars = []
    for one, effect in read:
        cost, gain = one.get("cost"), _float(one.get("gain_db"))
        shown = words.UNKNOWN if effect is None else f"{effect:.2f} dB"
        if gain is not None:
            shown += f", in float with what it touches gains {gain:.1f} dB"
        bars.append(
            Bar(
                tensor=str(one.get("tensor", words.UNKNOWN)),
                kind=str(one.get("kind") or ""),
                text=shown if cost is None else f"{shown}, in float costs {words.plain(cost)}",
                percent=0.0 if effect is None else 100.0 * abs(effect) / longest,
                negative=effect is not None and effect < 0.0,
            )
        )
    return bars


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _calibration_facts(calibration: Mapping[str, object]) -> str:
    n, tensors, method = (calibration.get(key) for key in ("n_samples", "n_tensors", "method"))
    ranges = words.UNKNOWN if tensors is None else words.plain(tensors)
    samples = words.UNKNOWN if n is None else words.plain(n)
    how = "" if method is None else f", ranges by {words.plain(method)}"
    return f"Samples: {samples}. Tensors whose range was measured: {ranges}{how}."


def rules_of(profile: Mapping[str, object], prefix: str = "") -> list[Rule]:
    """Every rule of a profile: each mapping that has a source, wherever it stands."""
    found = []
    for key, value in profile.items():
        name = f"{prefix}{key}".removeprefix("rules.")
        listed = value if isinstance(value, list | tuple) else [value]
        for one in listed:
            if not isinstance(one, Mapping):
                continue
            if "source" in one:
                found.append(_rule(name, one))
            else:
                found += rules_of(one, f"{name}.")
    return found


def _rule(name: str, one: Mapping[str, object]) -> Rule:
    confidence = str(one.get("confidence", ""))
    about = {key: part for key, part in one.items() if key not in {"confidence", "source"} and part}
    return Rule(
        name=name.replace("_", " "),
        value=words.plain(one.get("value", about))[:_VALUE_CHARS_MAX] or "none",
        confidence=_CONFIDENCE.get(confidence, confidence or words.UNKNOWN),
        source=words.plain(one["source"]),
    )


def _target_facts(profile: Mapping[str, object]) -> list[str]:
    """What the target is, and what stands between the bundle and the device."""
    title, between = profile.get("title"), words.not_run(profile)
    return [text for text in ("" if title is None else words.plain(title), between) if text]


def _file(one: object) -> tuple[str, str]:
    """A file that went in, its digest and name."""
    about: Mapping[str, object] = one if isinstance(one, Mapping) else {}
    kind, name = (words.plain(about.get(key, words.UNKNOWN)) for key in ("kind", "name"))
    return f"file: {kind}", f"{words.plain(about.get('sha256', words.UNKNOWN))} {name}"


def _provenance(provenance: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    """Digests first, then versions and the rest, one line each."""
    for key, name in _PROVENANCE_NAMES.items():
        value = provenance.get(key)
        yield name, words.UNKNOWN if value is None else words.plain(value)
    for key, value in provenance.items():
        if key in _PROVENANCE_NAMES or value is None:
            continue
        if isinstance(value, Mapping):
            for inner, figure in value.items():
                yield f"{key}: {inner}", words.plain(figure)
        elif key == "files" and isinstance(value, Sequence) and not isinstance(value, str):
            yield from (_file(one) for one in value)
        else:
            yield str(key), words.plain(value)
