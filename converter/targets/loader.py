"""Reads the targets' YAML files, each parsed once into a typed value.

For: finding a target by id or alias, and refusing a file whose recipes break its own rules.
Not for: looking at the machine (`converter.targets.detect`).

Every rule carries where it comes from and how well it is known: `V` read in source or documentation or
measured, `S` seen in a search excerpt, `M` from memory.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from converter.errors import InputError
from converter.recipe import Recipe, parse
from wire.bundle import Requirements
from wire.types import Name

T = TypeVar("T")

_FOLDER = Path(__file__).parent
_FILE_BYTES_MAX = 64 * 1024


class Rule(Struct, Generic[T], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule with where it comes from."""

    value: T
    confidence: Literal["V", "S", "M"]
    source: Annotated[str, Meta(min_length=1, max_length=400)]


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this class of device wants.

    Attributes:
        activation: integer type of activations in static recipes.
        weight: integer type of weights.
        symmetric: whether activations must have their zero point in the middle.
        per_channel: whether a scale per output channel may be used.
        reduce_range: whether full-range weights can saturate there, so that 7-bit ones are tried too.
        opset_min: lowest opset that its recipes need.
        opset_max: highest opset that its runtimes are known to have.
        session_config: entries for sessions on the device.
        session_config_full_range: further entries where weights use all eight bits.
        emulation_config: entries that make a host of another class compute the device's answers.
        recipes: candidates in the order of preference.
    """

    activation: Rule[Literal["u8", "i8"]]
    weight: Rule[Literal["u8", "i8"]]
    symmetric: Rule[bool]
    per_channel: Rule[bool]
    reduce_range: Rule[bool]
    opset_min: Rule[int]
    opset_max: Rule[int]
    session_config: Rule[dict[str, str]]
    session_config_full_range: Rule[dict[str, str]]
    emulation_config: Rule[dict[str, str]]
    recipes: Rule[tuple[str, ...]]


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class of device."""

    id: Name
    title: Name
    aliases: tuple[Name, ...] = ()
    runtime: Literal["onnxruntime"]
    requires: Rule[Requirements]
    rules: Rules

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Its candidates, best first."""
        return tuple(parse(name) for name in self.rules.recipes.value)

    def session_config(self, recipe: Recipe) -> dict[str, str]:
        """Session entries for that recipe on the device."""
        config = dict(self.rules.session_config.value)
        if recipe.quantized and not recipe.reduce_range:
            config |= self.rules.session_config_full_range.value
        return config


@cache
def all_targets() -> tuple[Target, ...]:
    """Every target, by id.

    Raises:
        RuntimeError: a target file breaks its own rules; that is a fault of this program.
    """
    return tuple(_load(path) for path in sorted(_FOLDER.glob("*.yaml")))


def find_target(name: str) -> Target:
    """The target of that id or alias.

    Raises:
        InputError: `unknown_target`; the message lists what there is.
    """
    for target in all_targets():
        if name == target.id or name in target.aliases:
            return target
    known = ", ".join(" = ".join((target.id, *target.aliases)) for target in all_targets())
    raise InputError("unknown_target", f"there is no target {name[:80]!r}; known are host, {known}")


def _load(path: Path) -> Target:
    text = path.read_bytes()
    if len(text) > _FILE_BYTES_MAX:
        raise RuntimeError(f"{path.name} is larger than {_FILE_BYTES_MAX} bytes")
    target = msgspec.convert(yaml.safe_load(text), Target)
    fault = broken_rule(target)
    if fault is not None or target.id != path.stem:
        raise RuntimeError(f"{path.name} breaks its own rules: {fault or 'its id is not its name'}")
    return target


def broken_rule(target: Target) -> str | None:
    """What a recipe of this target does that its rules forbid, or None."""
    rules = target.rules
    if rules.opset_min.value > rules.opset_max.value:
        return "opset_min is above opset_max"
    for recipe, name in zip(target.recipes, rules.recipes.value, strict=True):
        static = recipe.kind == "static"
        checks = (
            (recipe.weight == rules.weight.value, f"weights other than {rules.weight.value}"),
            (not static or recipe.activation == rules.activation.value, "other activations"),
            (not recipe.per_channel or rules.per_channel.value, "per channel"),
            (not recipe.reduce_range or rules.reduce_range.value, "a reduced range without need"),
            (not static or not rules.symmetric.value or recipe.symmetric, "asymmetric activations"),
        )
        fault = next((words for holds, words in checks if not holds), None)
        if fault is not None:
            return f"{name} has {fault}"
    return None
