"""Targets for people and for `--json`.

For: one row per target, and everything that is known of one.
Not for: printing (`converter.cli`).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, structs

from converter.targets.detect import Machine, of_class
from converter.targets.loader import Rule, Rules, Target, all_targets
from converter.targets.tflite_rules import Limit, TFLiteRules

_CONFIDENCE = "VSM"


class TargetRow(Struct, frozen=True, kw_only=True):
    """One line of the table.

    Attributes:
        model: what a bundle holds for it: `ONNX`, `ONNX and TFLite`, `TFLite`, `ONNX FP32 for its compiler`,
            `refused`.
        types: weights by activations, as `i8 x u8`.
        confidence: the weakest of its rules.
        this_host: whether this machine is of the class; None where that was not looked at.
    """

    id: str
    aliases: tuple[str, ...]
    title: str
    runtime: str
    model: str
    types: str
    per_channel: bool
    confidence: str
    compiled: bool
    this_host: bool | None


def targets_table(machine: Machine | None = None) -> tuple[TargetRow, ...]:
    """Every target, classes of CPU first."""
    ordered = sorted(all_targets(), key=lambda target: (target.accelerated, target.id))
    return tuple(_row(target, machine) for target in ordered)


def _row(target: Target, machine: Machine | None) -> TargetRow:
    rules = target.rules
    return TargetRow(
        id=target.id,
        aliases=target.aliases,
        title=target.title,
        runtime=target.provider or (target.tflite and target.tflite.delegate.value) or target.runtime,
        model=_model(target),
        types=f"{rules.weight.value} x {rules.activation.value}" + (" sym" if rules.symmetric.value else ""),
        per_channel=rules.per_channel.value,
        confidence=max((rule.confidence for rule in _said(target)), key=_CONFIDENCE.index),
        compiled=target.compiler is None,
        this_host=None if machine is None else of_class(machine, target),
    )


def _model(target: Target) -> str:
    """What a bundle holds for it."""
    if target.refused is not None:
        return "refused"
    if target.rules.format.value == "TFLite":
        return "TFLite"
    if not target.recipes:
        return "ONNX FP32 for its compiler"
    return "ONNX" if target.tflite is None else "ONNX and TFLite"


def _said(target: Target) -> list[Rule[object] | Limit]:
    """The rules that the profile states; those of TFLite files where it takes no others."""
    found: list[Rule[object] | Limit] = _stated(target.rules)
    if target.tflite is not None and target.rules.format.value == "TFLite":
        found += _stated(target.tflite)
        found += target.tflite.limits
    return found


def _stated(rules: Rules | TFLiteRules) -> list[Rule[object] | Limit]:
    stated = ((field, getattr(rules, field.name)) for field in structs.fields(rules))
    return [rule for field, rule in stated if isinstance(rule, Rule) and rule is not field.default]


def describe(target: Target) -> dict[str, object]:
    """Everything of one target, as plain data."""
    whole: dict[str, object] = msgspec.to_builtins(target)
    return whole | {"not_compiled": target.not_compiled}
