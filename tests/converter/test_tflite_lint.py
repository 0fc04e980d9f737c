"""Files against the rules of their target, one operator at a time; what is expected to run where."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec import structs

from converter.targets.loader import Target, all_targets, find_target
from converter.targets.rule import Rule
from converter.targets.tflite_checks import CHECKS
from converter.targets.tflite_lint import counted, lint_file, multiplications, predict, share_of
from converter.targets.tflite_rules import Check, TFLiteRules
from converter.targets.tflite_verdict import file_verdict
from converter.tflite.reader import read_file
from converter.tflite.schema import schema
from converter.tflite.tensors import Operator
from tests.converter.tflite_cases import (
    S,
    argmax,
    binary,
    conv,
    dense,
    depthwise,
    ethos,
    padded,
    pool,
    reduce,
    refused,
    reshaped,
    resize,
    sliced,
    transpose,
    transposed,
    unary,
)
from tests.converter.tflite_files import bias, file_of, operator, plain, tensor, weights

ETHOS, CORAL, VIP = (find_target(name) for name in ("ethos-u", "coral", "imx8mp"))


def _rules(target: Target) -> TFLiteRules:
    assert target.tflite is not None
    return target.tflite


def _broken(target: Target, *operators: Operator) -> set[str]:
    return {one.rule for one in lint_file(_rules(target), read_file(file_of(*operators)))}


@pytest.mark.parametrize("name", [*ethos(), *refused()])
def test_ethos_u(name: str) -> None:
    one, rule = (ethos() | refused())[name]
    found = _broken(ETHOS, one)
    assert (rule in found) if rule is not None else (found == set())


CONV_PER_TENSOR = operator(
    "CONV_2D", [tensor(S), weights((4, 3, 3, 4)), bias(4)], [tensor(S)], padding="SAME"
)
COMPUTED_BIAS = operator(
    "CONV_2D", [tensor(S), weights((4, 3, 3, 4)), tensor((4,), "int32")], [tensor(S)], padding="SAME"
)
UNEVEN = operator(
    "CONV_2D", [tensor(S), weights((4, 3, 3, 4)), bias(4)], [tensor(S)], padding="SAME", dilationHFactor=2
)


def _prelu(*slopes: int) -> Operator:
    return operator("PRELU", [tensor(S), weights(slopes)], [tensor(S)])


def _pack(axis: int) -> Operator:
    made = (2, 8, 4) if axis == 0 else (8, 2, 4)
    return operator("PACK", [tensor((8, 4)), tensor((8, 4))], [tensor(made)], valuesCount=2, axis=axis)


def _split(axis: int) -> Operator:
    half = tuple(length // 2 if i == axis else length for i, length in enumerate((2, 8, 4)))
    return operator("SPLIT", [plain(axis), tensor((2, 8, 4))], [tensor(half), tensor(half)], numSplits=2)


def _slice(batch: int) -> Operator:
    given = [tensor((2, 8, 8, 4)), plain([0, 0, 0, 0]), plain([batch, 8, 8, 4])]
    return operator("SLICE", [*given], [tensor((batch, 8, 8, 4))])


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (conv(), None), (conv(batch=2), "inner_axes"), (conv(activation="RELU6"), None),
        (CONV_PER_TENSOR, None), (UNEVEN, "dilation_equal"), (COMPUTED_BIAS, "bias_constant"),
        (conv(dtype="float32", weight="float32", biased="float32"), "types"),
        (conv(dtype="int16", biased="int64"), "types"),
        (unary("HARD_SWISH"), "operators"), (unary("RELU6"), None),
        (unary("LEAKY_RELU", alpha=0.1), "operators"),
        (pool("MAX_POOL_2D", (8, 8), (2, 2), 2, "VALID"), None),
        (pool("MAX_POOL_2D", (8, 8), (2, 2), 2, "VALID", "RELU"), "activation_none"),
        (dense(), None), (dense(4), "flat_max"),
        (reduce(S, (1, 2)), None), (reduce(S, (0,)), "batch_kept"), (reduce(S, (3,)), None),
        (reduce((1, 8, 8, 6), (3,)), "depth_multiple"), (reduce(S, (0,), kind="SUM"), "batch_kept"),
        (padded([[0, 0], [1, 1], [1, 1], [0, 0]]), None),
        (padded([[1, 0], [0, 0], [0, 0], [0, 0]]), "batch_kept"),
        (_pack(0), "batch_kept"), (_pack(1), None), (_split(0), "batch_kept"), (_split(2), None),
        (_prelu(1, 1, 4), None), (_prelu(8, 8, 4), "prelu_inner"),
        (unary("SOFTMAX", (1, 10)), None), (unary("SOFTMAX", (1, 8, 10)), "flat_max"),
        (unary("SOFTMAX", (1, 16_000)), None), (unary("SOFTMAX", (1, 16_001)), "depth_max"),
        (sliced(S, (1, 1, 1, 1)), None), (sliced(S, (1, 2, 1, 1)), "strides_one"),
        (operator("STRIDED_SLICE", [tensor(S), *(plain([0, 0]) for _ in range(3))], [tensor(S)],
                  ellipsisMask=1), "masks_zero"),
        (binary("CONCATENATION", S, S, (1, 8, 8, 8), axis=3), None),
        (operator("CONCATENATION", [tensor(S), weights(S)], [tensor((1, 8, 8, 8))], axis=3),
         "concat_computed"),
        (operator("ADD", [tensor(S, scale=None), tensor(S)], [tensor(S)]), "quantized"),
        (operator("CONV_2D", [tensor(S), tensor((4, 3, 3, 4)), bias(4)], [tensor(S)], padding="SAME"),
         "weights_constant"),
        (resize((4, 4), (12, 12)), None), (transposed((4, 4), (8, 8), (3, 3), (2, 2)), None),
        (transpose(S, (0, 3, 1, 2)), None),
    ],
)  # fmt: skip
def test_edge_tpu(one: Operator, rule: str | None) -> None:
    found = _broken(CORAL, one)
    assert (rule in found) if rule is not None else (found == set())


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (CONV_PER_TENSOR, None), (conv(dtype="uint8", weight="uint8"), None), (conv(), "per_tensor"),
        (depthwise(), "per_tensor"), (dense(), None),
        (unary("GELU"), "operators"), (unary("HARD_SWISH"), None), (unary("DEQUANTIZE", to="float32"), None),
        (unary("QUANTIZE", dtype="float32", to="int8"), None),
        (unary("RELU", dtype="int64"), "input_types_not"), (unary("RELU", to="int16"), "output_types_not"),
        (unary("RELU", (1, 1, 1, 2, 2, 2, 2)), "rank_max"), (unary("RELU", (1, 0, 4)), "not_empty"),
        (conv(dtype="float32", weight="uint8", biased="float32"), "same_types"),
        (conv(dtype="float32", weight="float32", biased="float32"), None),
        (operator("FULLY_CONNECTED", [tensor((1, 16), "int16"), weights((8, 16), "int16"), None],
                  [tensor((1, 8))]), "input_types_not"),
        (binary("BATCH_MATMUL", (1, 8, 16), (1, 16, 8), (1, 8, 8)), "input_types_not"),
        (binary("BATCH_MATMUL", (1, 8, 16), (1, 16, 8), (1, 8, 8), "uint8"), None),
        (binary("BATCH_MATMUL", (1, 16, 8), (1, 8, 16), (1, 8, 8), "uint8", adjX=True, adjY=True),
         "adjoint_one"),
        (_slice(2), None), (_slice(1), "batch_kept"),
        (operator("SLICE", [tensor(S), plain([0, 0, 0, 0]), tensor((4,), "int32", scale=None)], [tensor(S)]),
         "parameters_constant"),
        (argmax(S, 3), "input_types_not"), (argmax(S, 3, "uint8"), None),
        (reshaped((256,)), None),
    ],
)  # fmt: skip
def test_vip_npu(one: Operator, rule: str | None) -> None:
    found = _broken(VIP, one)
    assert (rule in found) if rule is not None else (found == set())


@pytest.mark.parametrize("target", [ETHOS, CORAL, VIP])
def test_free_axes_are_left_to_the_cpu(target: Target) -> None:
    file = read_file(file_of(unary("RELU")))
    first, second = file.tensors
    free = structs.replace(file, tensors=(structs.replace(first, fixed=False), second))
    assert {one.rule for one in lint_file(_rules(target), free)} == {"fixed_shape"}


def test_every_check_is_named_and_used_by_a_profile() -> None:
    assert set(get_args(Check)) == set(CHECKS)
    used = {limit.check for one in all_targets() if one.tflite is not None for limit in one.tflite.limits}
    assert used == set(CHECKS)


def test_every_operator_of_a_profile_is_tflites() -> None:
    known = {name for name in vars(schema.BuiltinOperator) if not name.startswith("_")}
    for target in all_targets():
        if target.tflite is None:
            continue
        assert set(target.tflite.operators.value) <= known, target.id
        assert set(target.tflite.before.value) <= known, target.id
        for limit in target.tflite.limits:
            assert {*limit.operators, *limit.but} <= set(target.tflite.operators.value), (target.id, limit)


def test_the_edge_tpu_is_cut_once() -> None:
    """What stands behind the first operator that is left to the CPU is left to it, too."""
    first, odd, last = conv(), unary("HARD_SWISH"), conv(activation="RELU")
    entry = unary("QUANTIZE", dtype="float32", to="int8")
    found = predict(CORAL, read_file(file_of(entry, first, odd, last)))
    assert found is not None
    assert found.elsewhere == {0: "CPU", 2: "CPU", 3: "CPU"}
    assert found.accelerated == 1
    assert found.share == 0.5
    assert [(one.index, one.rule) for one in found.findings if one.rule == "cut_once"] == [(3, "cut_once")]
    assert "it stands behind HARD_SWISH 2" in next(x.words for x in found.findings if x.rule == "cut_once")
    # Behind the border, a QUANTIZE cuts as anything else does.
    cut = predict(CORAL, read_file(file_of(first, entry, last)))
    assert cut is not None
    assert cut.elsewhere == {1: "CPU", 2: "CPU"}
    # Where the compiler may cut often, what follows stays where it is.
    often = predict(ETHOS, read_file(file_of(first, unary("SQRT"), last)))
    assert often is not None
    assert often.elsewhere == {1: "CPU"}
    assert often.share == 1.0


def test_an_operator_before_all_else_cuts_unless_it_may_stand_there() -> None:
    found = predict(CORAL, read_file(file_of(unary("HARD_SWISH"), conv())))
    assert found is not None
    assert found.elsewhere == {0: "CPU", 1: "CPU"}
    assert found.share == 0.0


def test_the_worse_place_counts() -> None:
    both = conv(dtype="uint8", weight="int8", biased="int32")
    found = predict(VIP, read_file(file_of(both)))
    assert found is not None
    assert {one.rule for one in found.findings} == {"per_tensor", "same_types"}
    assert found.elsewhere == {0: "CPU"}
    graphics = predict(VIP, read_file(file_of(conv())))
    assert graphics is not None
    assert graphics.elsewhere == {0: "GPU"}


def test_where_no_accelerator_is_nothing_is_predicted() -> None:
    file = read_file(file_of(unary("SQRT")))
    assert predict(find_target("rpi5"), file) is None
    assert predict(find_target("orin"), file) is None
    assert lint_file(_rules(find_target("rpi5")), file) == ()
    assert file_verdict(find_target("rpi5"), file_of(unary("SQRT"))).words == ()


@pytest.mark.parametrize(
    ("one", "count"),
    [
        (conv(8, 3), 8 * 8 * 4 * 9 * 4), (conv(8, 3, 2, batch=2), 2 * 4 * 4 * 4 * 9 * 4),
        (depthwise(), 16 * 16 * 4 * 9), (depthwise(multiplier=2), 16 * 16 * 8 * 9), (dense(3), 3 * 8 * 16),
        (transposed((4, 4), (8, 8), (3, 2), (2, 2)), 4 * 4 * 4 * 4 * 6),
        (binary("BATCH_MATMUL", (2, 8, 16), (2, 16, 4), (2, 8, 4)), 2 * 8 * 4 * 16),
        (binary("BATCH_MATMUL", (2, 16, 8), (2, 16, 4), (2, 8, 4), adjX=True), 2 * 8 * 4 * 16),
        (unary("RELU"), 0),
    ],
)  # fmt: skip
def test_multiplications(one: Operator, count: int) -> None:
    file = read_file(file_of(one))
    assert multiplications(file, file.operators[0]) == count
    assert share_of(file, {0}) == (0.0 if count else None)


def test_kinds_are_counted_the_most_first() -> None:
    file = read_file(file_of(unary("TANH"), unary("SQRT"), unary("SQRT"), unary("ABS")))
    assert list(counted(file, range(4)).items()) == [("SQRT", 2), ("ABS", 1), ("TANH", 1)]
    assert counted(file, [3]) == {"ABS": 1}


def test_a_verdict_in_words() -> None:
    content = file_of(conv(), unary("HARD_SWISH"), conv(), conv())
    told = file_verdict(CORAL, content)
    assert told.words[0].startswith("not compiled, not run: edgetpu_compiler is a proprietary program")
    assert (
        "coral_edgetpu, cut_once: CONV_2D 2 runs on the CPU: it stands behind HARD_SWISH 1, where the "
        "compiler cuts and 1 more like it (V: Axis, " in told.words[1]
    )
    assert told.words[2].startswith(
        "predicted, not compiled: 1 of 4 operators on the accelerator, 33% of the multiplications; "
        "elsewhere CONV_2D 2, HARD_SWISH 1 (S: Axis"
    )
    assert (told.errors, told.falls_back) == (0, True)
    clean = file_verdict(CORAL, file_of(unary("RELU")))
    assert clean.falls_back is False
    assert "1 of 1 operators on the accelerator; nothing elsewhere (" in clean.words[-1]
    graphics = file_verdict(VIP, file_of(conv()))
    assert any("runs on the GPU" in words for words in graphics.words)
    bad = file_verdict(ETHOS, file_of(refused()["hard swish, float"][0]))
    assert (bad.errors, bad.falls_back) == (1, True)
    assert bad.words[-1] == "predicted, not compiled: the compiler refuses the file"


def test_findings_say_what_was_found() -> None:
    cases = ethos()
    named = ("bilinear, 3", "transposed, cut", "mean of 4097", "average, 9 that pads", "conv, heavy weights",
             "transpose, large", "mean of two samples", "argmax, height", "steps backwards")  # fmt: skip
    file = read_file(file_of(*(cases[name][0] for name in named)))
    told = [one.words for one in lint_file(_rules(ETHOS), file)]
    assert told[:2] == ["from [4, 4] to [12, 12]", "an output of [7, 7], not [8, 8]"]
    assert told[2:5] == [
        "it reduces an axis of 4097", "a kernel of [9, 9] that pads",
        f"weights of one filter sum up to {63 * 63 * 20 * 127}",
    ]  # fmt: skip
    assert told[5:] == [
        "axes of [2, 300, 300, 4], too many for the order [3, 2, 1, 0]",
        f"{file.tensors[file.operators[6].inputs[0]].name} is [2, 8, 8, 4], a batch of 2",
        "it runs along axis 1 of 4", "steps [1, -1, 1, 1]",
    ]  # fmt: skip


def test_many_kinds_are_not_all_named() -> None:
    kinds = ("HARD_SWISH", "SQRT", "GELU", "ELU", "ABS", "NEG", "EXP")
    told = file_verdict(CORAL, file_of(*(unary(kind) for kind in kinds)))
    assert "elsewhere ABS 1, ELU 1, EXP 1, GELU 1, HARD_SWISH 1 and 2 kinds more (" in told.words[-1]


def test_a_limit_may_leave_operators_out() -> None:
    rules = _rules(ETHOS)
    only: Rule[tuple[str, ...]] = Rule(value=("SQRT",), confidence="V", source="a test")
    narrow = structs.replace(rules, operators=only, limits=())
    file = read_file(file_of(conv(), unary("SQRT")))
    assert [(one.index, one.rule) for one in lint_file(narrow, file)] == [(0, "operators")]
