"""Operators on tensors that lie in any order of axes: a Transpose in front renames axes and moves nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.converter.quantizing import Floats, Line, floats, graph
from tests.converter.tflite.harness import check_float

_SIZES = (1, 2, 3, 4)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int], int, bool]:
    """Shape behind the batch, order of all axes, an axis, and whether it is kept."""
    shape = tuple(draw(st.lists(st.sampled_from(_SIZES), min_size=2, max_size=3)))
    order = draw(st.permutations(range(len(shape) + 1)))
    return shape, list(order), draw(st.integers(0, len(shape))), draw(st.booleans())


def _check(
    shape: tuple[int, ...], order: list[int], lines: list[Line], constants: dict[str, Floats], rank: int
) -> None:
    made = graph(
        [("Transpose", "x", "t", {"perm": order}), *lines], constants, outputs={"y": [None] * rank},
        shape=shape,
    )  # fmt: skip
    check_float(made, 1e-4)


@settings(deadline=None, max_examples=40)
@given(case=_cases(), kind=st.sampled_from(["ReduceMean", "ReduceMax"]))
def test_reductions(case: tuple[tuple[int, ...], list[int], int, bool], kind: str) -> None:
    shape, order, axis, keep = case
    line = (kind, "t", "y", {"axes": [axis], "keepdims": int(keep)})
    _check(shape, order, [line], {}, len(order) - (not keep))


@settings(deadline=None, max_examples=40)
@given(case=_cases(), kind=st.sampled_from(["Softmax", "LogSoftmax"]))
def test_softmax(case: tuple[tuple[int, ...], list[int], int, bool], kind: str) -> None:
    shape, order, axis, _ = case
    _check(shape, order, [(kind, "t", "y", {"axis": axis})], {}, len(order))


@settings(deadline=None, max_examples=40)
@given(case=_cases(), kind=st.sampled_from(["Add", "Mul", "Sub", "Max"]))
def test_constants(case: tuple[tuple[int, ...], list[int], int, bool], kind: str) -> None:
    """Of some lower rank, each of its axes spread or not."""
    shape, order, axis, spread = case
    moved = [(1, *shape)[i] for i in order][axis:]
    if spread and moved:
        moved[0] = 1
    line = (kind, "t k", "y")
    _check(shape, order, [line], {"k": floats(1, *moved)}, len(order))


@settings(deadline=None, max_examples=40)
@given(first=st.permutations(range(3)), second=st.permutations(range(3)), axis=st.integers(0, 2))
def test_two_layouts_meet(first: list[int], second: list[int], axis: int) -> None:
    """One tensor under two orders of axes, and what is reduced of one of them."""
    made = graph(
        [
            ("Concat", "x x x", "c", {"axis": 0}), ("Transpose", "c", "t", {"perm": first}),
            ("Transpose", "c", "u", {"perm": second}), ("Mul", "t u", "m"),
            ("ReduceMean", "m", "r", {"axes": [axis]}), ("Sub", "u r", "y"),
        ],
        {}, outputs={"y": [None] * 3}, shape=(3, 3),
    )  # fmt: skip
    check_float(made)


@settings(deadline=None, max_examples=40)
@given(case=_cases(), bias=st.booleans())
def test_layer_normalization(case: tuple[tuple[int, ...], list[int], int, bool], *, bias: bool) -> None:
    shape, order, axis, _ = case
    size = [(1, *shape)[i] for i in order][axis:]
    constants = {"s": floats(1, *size) + 1} | ({"b": floats(2, *size)} if bias else {})
    line = ("LayerNormalization", "t s b" if bias else "t s", "y", {"axis": axis, "epsilon": 0.1})
    _check(shape, order, [line], constants, len(order))


@settings(deadline=None, max_examples=40)
@given(case=_cases(), width=st.integers(1, 4))
def test_products(case: tuple[tuple[int, ...], list[int], int, bool], width: int) -> None:
    shape, order, _, constant = case
    moved = [(1, *shape)[i] for i in order]
    if constant:
        _check(shape, order, [("MatMul", "t w", "y")], {"w": floats(1, moved[-1], width)}, len(order))
        return
    swap = [*range(len(order) - 2), len(order) - 1, len(order) - 2]
    lines: list[Line] = [("Transpose", "t", "u", {"perm": swap}), ("MatMul", "t u", "y")]
    _check(shape, order, lines, {}, len(order))
