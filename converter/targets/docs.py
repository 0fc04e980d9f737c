"""The page docs/targets.md, made from the profiles: `python -m converter.targets.docs > docs/targets.md`.

For: showing every rule with its source where people look; a test keeps the page in step.
Not for: being edited by hand.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from converter.targets.loader import Rule, Target, all_targets
from converter.targets.show import TargetRow, targets_table
from converter.targets.tflite_rules import Limit

_HEADINGS = (
    "id", "aliases", "what it is", "runtime or provider", "a bundle holds", "weights x activations",
    "per channel", "confidence",
)  # fmt: skip


def page() -> str:
    """The whole page."""
    rows = targets_table()
    lines = [
        "# Targets",
        "",
        "Made from `converter/targets/*.yaml` by `python -m converter.targets.docs`; not edited by hand.",
        "Confidence: V read in source or documentation or measured, S seen in a search excerpt, M from",
        "memory. The table states the weakest rule of each profile.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
    ]
    targets = {target.id: target for target in all_targets()}
    for row in rows:
        lines += _section(targets[row.id])
    return "\n".join(lines)


def _line(row: TargetRow) -> str:
    per_channel = "yes" if row.per_channel else "no"
    cells = (
        f"`{row.id}`", ", ".join(f"`{name}`" for name in row.aliases), row.title, row.runtime, row.model,
        row.types, per_channel, row.confidence,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _section(target: Target) -> list[str]:
    lines = [f"## {target.id}", "", f"{target.title}.", ""]
    if target.refused is not None:
        lines += [f"Refused: {target.refused.value}.", ""]
    elif target.not_compiled is not None:
        lines += [f"{target.not_compiled[0].upper()}{target.not_compiled[1:]}.", ""]
    rules: list[tuple[str, Rule[Any]]] = [("requires", target.requires)]
    if target.detect is not None:
        rules.append(("detect", target.detect))
    rules += [(name, getattr(target.rules, name)) for name in target.rules.__struct_fields__]
    lines += ["| rule | value | confidence | source |", "|---|---|---|---|"]
    for name, rule in rules:
        if rule.source.startswith("the plain case"):
            continue
        lines.append(f"| {name} | `{_value(rule.value)}` | {rule.confidence} | {rule.source} |")
    lines.append("")
    lines += _tflite(target)
    if target.hazards:
        lines += ["Known to fail:", ""]
        lines += [f"- {one.value} ({one.confidence}: {one.source})" for one in target.hazards]
        lines.append("")
    return lines


def _tflite(target: Target) -> list[str]:
    if target.tflite is None:
        return []
    lines = ["TFLite files:", "", "| rule | value | confidence | source |", "|---|---|---|---|"]
    for name in target.tflite.__struct_fields__:
        rule = getattr(target.tflite, name)
        if isinstance(rule, Rule) and not rule.source.startswith("the plain case"):
            lines.append(f"| {name} | `{_value(rule.value)}` | {rule.confidence} | {rule.source} |")
    lines.append("")
    if target.tflite.limits:
        lines += ["| limit | of | value | confidence | source |", "|---|---|---|---|---|"]
        lines += [_limit(one) for one in target.tflite.limits]
        lines.append("")
    return lines


def _limit(one: Limit) -> str:
    about = ", ".join(one.operators) or "all"
    about += f" but {', '.join(one.but)}" if one.but else ""
    bounds = [f"{name} {value}" for name, value in (("from", one.low), ("to", one.high)) if value is not None]
    value = ", ".join([*bounds, *one.words, *(["else the GPU"] if one.runs_on == "GPU" else [])])
    return f"| {one.check} | {about} | {value} | {one.confidence} | {one.source} |"


def _value(value: object) -> str:
    plain = msgspec.to_builtins(value)
    if isinstance(plain, dict):
        plain = {key: held for key, held in plain.items() if held not in ([], {}, None)}
    return msgspec.json.encode(plain).decode()


if __name__ == "__main__":
    sys.stdout.write(page())
