"""Reads the targets' YAML files, each parsed once into a typed value.

For: finding a target by id or alias, and refusing a file whose recipes break its own rules.
Not for: looking at the machine (`converter.targets.detect`).

Every rule carries where it comes from and how well it is known (`converter.targets.rule`).
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from converter.errors import InputError
from converter.recipe import Recipe, parse
from converter.targets.rule import Rule
from converter.targets.rule import plain_rule as _rule
from converter.targets.tflite_rules import TFLiteRules
from wire.bundle import Requirements
from wire.types import Name

__all__ = [
    "ActivationType", "Compiler", "Detection", "Rule", "Rules", "Target", "activations_of", "all_targets",
    "broken_rule", "find_target", "forbidden", "usable_target", "weights_of",
]  # fmt: skip

_FOLDER = Path(__file__).parent
_IMPOSSIBLE = {
    "jetson_nano": "its Maxwell GPU has no INT8 (NVIDIA's support matrix); convert for arm64_v8_0, its CPU",
    "hailo10": "its driver, runtime and compiler (5) are not those of hailo8 (4); there is no profile of it",
    "jetson_thor_dla": "Thor has no DLA (NVIDIA, Working with DLA); convert for jetson_gpu_trt",
}
"""Devices that people ask for by name and that cannot do what this program is for."""
_FILE_BYTES_MAX = 64 * 1024


_OPSET_PER_CHANNEL: Rule[int] = Rule(
    value=13,
    confidence="V",
    source="per-channel QDQ below opset 13 is an invalid graph (the axis came with opset 13)",
)
_OPSET_SAFE: Rule[int] = Rule(
    value=21, confidence="S", source="onnxruntime#25932: QuantizeLinear(23) is missing in older runtimes"
)

ActivationType = Literal["u8", "i8", "u16", "i16"]


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this class of device wants of a quantized model.

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
        format: of quantized models: Q/DQ pairs, integer operators, or TFLite.
        exclude: operators that stay in float.
        quantize_bias: whether biases become 32-bit integers.
        whole: whether everything that can be quantized is, for what reads quantized graphs only.
        fused_activations: whether Relu and Clip run within the operator before them, so that no pair
            stands between the two.
        wide_activation: 16-bit types of activations that have kernels there; only then are islands of 16
            bits and 16-bit candidates made.
        static_shapes: whether every axis but the samples' must be fixed.
        operators: what the accelerator runs; empty where that is not known or all run.
        stride: least and largest of convolutions; empty where there is no such limit.
        kernel: least and largest height of a dilated kernel.
        kernel_area_max: largest height times width of a dilated kernel.
        average_pool_max: largest side of an average pool's kernel where it pads.
        max_pool_height_max: largest height of a maximum pool's kernel.
        rank_max: of tensors; None where there is no such limit.
        inner_axes_max: how many of the innermost axes may be larger than 1.
        batch_max: largest first axis of an input.
        size_max: largest axis of a tensor.
        also_activation: further types of activations that are taken as well.
        also_weight: the same of weights.
        weight_pairs: whether weights must stay float behind a whole pair of QuantizeLinear and
            DequantizeLinear.
        int4: whether 4-bit weights can be read there.
    """

    activation: Rule[ActivationType]
    weight: Rule[Literal["u8", "i8"]]
    symmetric: Rule[bool]
    per_channel: Rule[bool]
    recipes: Rule[tuple[str, ...]]
    reduce_range: Rule[bool] = _rule(False)
    opset_min: Rule[int] = _OPSET_PER_CHANNEL
    opset_max: Rule[int] = _OPSET_SAFE
    session_config: Rule[dict[str, str]] = _rule({})
    session_config_full_range: Rule[dict[str, str]] = _rule({})
    emulation_config: Rule[dict[str, str]] = _rule({})
    format: Rule[Literal["QDQ", "QOperator", "TFLite"]] = _rule("QDQ")
    exclude: Rule[tuple[str, ...]] = _rule(())
    quantize_bias: Rule[bool] = _rule(True)
    whole: Rule[bool] = _rule(False)
    fused_activations: Rule[bool] = _rule(False)
    wide_activation: Rule[tuple[Literal["u16", "i16"], ...]] = _rule(())
    static_shapes: Rule[bool] = _rule(False)
    operators: Rule[tuple[str, ...]] = _rule(())
    stride: Rule[tuple[int, ...]] = _rule(())
    kernel: Rule[tuple[int, ...]] = _rule(())
    kernel_area_max: Rule[int | None] = _rule(None)
    average_pool_max: Rule[int | None] = _rule(None)
    max_pool_height_max: Rule[int | None] = _rule(None)
    rank_max: Rule[int | None] = _rule(None)
    inner_axes_max: Rule[int | None] = _rule(None)
    batch_max: Rule[int | None] = _rule(None)
    size_max: Rule[int | None] = _rule(None)
    also_activation: Rule[tuple[ActivationType, ...]] = _rule(())
    also_weight: Rule[tuple[Literal["u8", "i8"], ...]] = _rule(())
    weight_pairs: Rule[bool] = _rule(False)
    int4: Rule[bool] = _rule(False)


class Detection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What gives such a device away; any one of these is enough, beside what it requires of the CPU."""

    nodes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    usb: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether anything is said at all."""
        return bool(self.nodes or self.files or self.compatible or self.usb or self.pci)


class Compiler(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who turns the model into what the accelerator runs.

    Attributes:
        name: of the program.
        version: that these rules were read for; None where any will do.
        here: whether it can be had from PyPI and run on a host.
        cache_key: what a compiled model depends on; one that differs in any of it must be compiled again.
        words: what has to be done with the bundle's model, for the report.
    """

    name: Name
    version: Name | None = None
    here: bool
    cache_key: tuple[Name, ...] = ()
    words: Annotated[str, Meta(min_length=1, max_length=400)]


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class of device.

    Attributes:
        id: its name.
        title: for people.
        aliases: other names.
        runtime: that runs the model.
        provider: of that runtime, where it is not the CPU; or the delegate.
        requires: what a device of this class has; part of the contract.
        refines: a wider class of CPU, which a machine of this one also is.
        detect: what gives it away beside the CPU; None for a class of CPU.
        compiler: None where the runtime takes the model as it is.
        refused: why no model can be made for it here, and what to do instead; None where one can.
        rules: of its models.
        tflite: of its `.tflite` files; None where there are none for it.
        hazards: what is known to fail.
    """

    id: Name
    title: Name
    aliases: tuple[Name, ...] = ()
    runtime: Literal["onnxruntime", "litert", "vendor"]
    provider: Name | None = None
    requires: Rule[Requirements]
    refines: Name | None = None
    detect: Rule[Detection] | None = None
    compiler: Rule[Compiler] | None = None
    refused: Rule[str] | None = None
    rules: Rules
    tflite: TFLiteRules | None = None
    hazards: tuple[Rule[str], ...] = ()

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Its candidates, best first."""
        return tuple(parse(name) for name in self.rules.recipes.value)

    @property
    def accelerated(self) -> bool:
        """Whether something other than the CPU runs the model."""
        return self.detect is not None

    @property
    def not_compiled(self) -> str | None:
        """What the report says where a compiler stands between the bundle and the device."""
        if self.compiler is None:
            return None
        return f"not compiled, not run: {self.compiler.value.words}"

    def session_config(self, recipe: Recipe) -> dict[str, str]:
        """Session entries for that recipe on the device."""
        config = dict(self.rules.session_config.value)
        if recipe.quantized and not recipe.reduce_range:
            config |= self.rules.session_config_full_range.value
        return config


def activations_of(rules: Rules) -> frozenset[str]:
    """Every type of activation that is taken there, the 16-bit ones with kernels among them."""
    return frozenset({rules.activation.value, *rules.also_activation.value, *rules.wide_activation.value})


def weights_of(rules: Rules) -> frozenset[str]:
    """Every type of 8-bit weight that is taken there."""
    return frozenset({rules.weight.value, *rules.also_weight.value})


@cache
def all_targets() -> tuple[Target, ...]:
    """Every target, by id.

    Raises:
        RuntimeError: a target file breaks its own rules; that is a fault of this program.
    """
    return tuple(_load(path) for path in sorted(_FOLDER.glob("*.yaml")))


def file_of_target(target_id: str) -> Path:
    """The file that holds the rules of the target of that id."""
    return _FOLDER / f"{target_id}.yaml"


def find_target(name: str) -> Target:
    """The target of that id or alias.

    Raises:
        InputError: `target_impossible`; or `unknown_target`, whose message lists what there is.
    """
    for target in all_targets():
        if name == target.id or name in target.aliases:
            return target
    words = _IMPOSSIBLE.get(name.lower().replace("-", "_"))
    if words is not None:
        raise InputError("target_impossible", f"{name[:80]}: {words}")
    names = [given for target in all_targets() for given in (target.id, *target.aliases)]
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(" = ".join((target.id, *target.aliases)) for target in all_targets())
    raise InputError("unknown_target", f"there is no target {name[:80]!r}{meant}; known are host, {known}")


def usable_target(name: str) -> Target:
    """The target of that id or alias, for which a model can be made.

    Raises:
        InputError: as `find_target`; `target_refused`: none is made for it here.
    """
    target = find_target(name)
    if target.refused is not None:
        raise InputError("target_refused", f"{target.id}: {target.refused.value}")
    return target


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
    if target.runtime == "vendor" and target.refused is None:
        return "nothing here writes such models, and it is not refused"
    if rules.format.value == "TFLite" and target.tflite is None and target.refused is None:
        return "it takes TFLite files and does not say which, and it is not refused"
    tflite = () if target.tflite is None else target.tflite.recipes.value
    for name in (*rules.recipes.value, *tflite):
        recipe = parse(name)
        fault = forbidden(target, recipe) or (_not_tflite(recipe) if name in tflite else None)
        if fault is not None:
            return f"{name} has {fault}"
    return None


def _not_tflite(recipe: Recipe) -> str | None:
    """Why a recipe cannot be written as a TFLite file, in words, or None."""
    if recipe.kind == "static" and not recipe.twin:
        return "scales that TFLite's kernels need not take: only a twin's are"
    if recipe.kind not in {"static", "dynamic", "float"}:
        return f"a kind that TFLite files do not know: {recipe.kind}"
    return None


def forbidden(target: Target, recipe: Recipe) -> str | None:
    """Why a recipe does not suit a target's rules, in words, or None."""
    rules = target.rules
    static = recipe.kind in {"static", "mixed"}
    bits = int(recipe.weight[1:])
    wide = recipe.activation in {"u16", "i16"}
    checks = (
        (bits != 8 or recipe.weight in weights_of(rules), f"weights other than {rules.weight.value}"),
        (bits != 4 or rules.int4.value, "4-bit weights, which are not read there"),
        (
            not static or wide or recipe.activation in activations_of(rules),
            f"activations other than {rules.activation.value}",
        ),
        (
            not wide or recipe.activation in activations_of(rules),
            f"{recipe.activation} activations, for which this target lists no kernels",
        ),
        (not recipe.per_channel or rules.per_channel.value, "per channel"),
        (
            "qop" not in recipe.extras or rules.format.value == "QOperator",
            "integer operators, not Q/DQ pairs",
        ),
        (not recipe.reduce_range or rules.reduce_range.value, "a reduced range without need"),
        (not static or not rules.symmetric.value or recipe.symmetric, "asymmetric activations"),
    )
    return next((words for holds, words in checks if not holds), None)
