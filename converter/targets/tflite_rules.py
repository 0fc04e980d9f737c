"""PURE. What a target wants of `.tflite` files, as data.

For: `TFLiteRules`, part of a profile: recipes, the type of inputs and outputs, operators, their limits, and
how a compiler cuts.
Not for: judging a file (`converter.targets.tflite_lint`); what each check looks at is said where it is done
(`converter.targets.tflite_checks`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from converter.targets.rule import Confidence, Rule, Source, plain_rule

Check = Literal[
    "activation_none", "adjoint_one", "argmax_last", "batch_kept", "batch_max", "bias_constant",
    "bias_types", "concat_computed", "depth_max", "depth_multiple", "depth_reduced", "dilation_equal",
    "fixed_shape", "flat_max", "inner_axes", "input_types_not", "masks_zero", "not_empty",
    "output_types_not", "parameters_constant", "per_tensor", "pool_area", "pool_height", "pool_side",
    "prelu_inner", "quantized", "rank_max", "reduced_axis_max", "reduced_elements_max", "resize_factors",
    "same_quantization", "same_types", "softmax_area", "stride", "strides_inner", "strides_one",
    "transpose_conv", "transpose_plain", "types", "types_of_data", "weights_constant", "weights_sum_max",
    "weights_types", "wide_stride",
]  # fmt: skip
"""What can be asked of an operator; the names are those of `converter.targets.tflite_checks`."""


class Limit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One restriction; an operator that breaks it does not run on the accelerator.

    Attributes:
        check: what is asked.
        operators: that it is about; empty for all.
        but: operators that it is not about.
        low: bound, where the check has one.
        high: bound, where the check has one.
        words: types or names, where the check wants some.
        runs_on: where such an operator runs instead; `nowhere` where the compiler refuses the whole file.
        confidence: how well it is known.
        source: where it comes from.
    """

    check: Check
    operators: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    words: tuple[str, ...] = ()
    runs_on: Literal["CPU", "GPU", "nowhere"] = "CPU"
    confidence: Confidence
    source: Source

    def about(self, kind: str) -> bool:
        """Whether it restricts that operator."""
        return (not self.operators or kind in self.operators) and kind not in self.but


class VelaSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Vela is told beside the model."""

    accelerator: Annotated[str, Meta(pattern=r"^ethos-u[0-9]{2}-[0-9]{2,4}$")]
    system: str | None = None
    memory: str | None = None


class TFLiteRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device wants of `.tflite` files.

    Attributes:
        recipes: candidates as TFLite, in the order of preference.
        edge: type of the inputs and outputs of quantized files.
        delegate: library that a runtime on the device loads; None where the CPU runs the file.
        operators: what the accelerator runs; empty where all run on the CPU.
        cut_once: whether all behind the first operator that the accelerator does not take is left to the CPU.
        before: operators that may stand before the accelerator's part without cutting it.
        limits: restrictions of the accelerator.
        vela: what Vela is told; None where it is not the compiler.
    """

    recipes: Rule[tuple[str, ...]]
    edge: Rule[Literal["float32", "int8", "uint8"]] = plain_rule("float32")
    delegate: Rule[str | None] = plain_rule(None)
    operators: Rule[tuple[str, ...]] = plain_rule(())
    cut_once: Rule[bool] = plain_rule(False)
    before: Rule[tuple[str, ...]] = plain_rule(())
    limits: tuple[Limit, ...] = ()
    vela: Rule[VelaSettings | None] = plain_rule(None)
