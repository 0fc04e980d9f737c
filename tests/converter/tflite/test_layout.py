"""The algebra of axes against numpy."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from converter.tflite.layout import (
    Padding,
    between,
    channels_last,
    identity,
    is_free,
    laid,
    moved,
    padding_of,
    reshaped,
    same_pads,
    without,
)

Case = tuple[tuple[int, ...], tuple[int, ...]]


@st.composite
def laid_shapes(draw: st.DrawFn, ranks: tuple[int, int] = (1, 5)) -> Case:
    """A shape and a layout of it; lengths of 1 are common."""
    shape = draw(st.lists(st.sampled_from([1, 1, 2, 3, 4, 6]), min_size=ranks[0], max_size=ranks[1]))
    return tuple(shape), tuple(draw(st.permutations(range(len(shape)))))


def _numbers(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.arange(prod(shape)).reshape(shape)


@given(laid_shapes(), st.data())
def test_a_transpose_only_renames(case: Case, data: st.DataObject) -> None:
    shape, axes = case
    permutation = tuple(data.draw(st.permutations(range(len(shape)))))
    x = _numbers(shape)
    file, renamed = x.transpose(axes), x.transpose(permutation)
    assert file.shape == laid(shape, axes)
    assert np.array_equal(renamed.transpose(moved(axes, permutation)), file)


@given(laid_shapes(), st.data())
def test_between_brings_one_layout_to_the_other(case: Case, data: st.DataObject) -> None:
    shape, have = case
    want = tuple(data.draw(st.permutations(range(len(shape)))))
    x = _numbers(shape)
    assert np.array_equal(x.transpose(have).transpose(between(have, want)), x.transpose(want))


@given(laid_shapes(), st.data())
def test_free_is_what_a_reshape_does(case: Case, data: st.DataObject) -> None:
    shape, have = case
    want = tuple(data.draw(st.permutations(range(len(shape)))))
    x = _numbers(shape)
    by_reshape = x.transpose(have).reshape(laid(shape, want))
    assert is_free(shape, have, want) == np.array_equal(by_reshape, x.transpose(want))


@given(laid_shapes(), st.data())
def test_without_is_what_a_reduction_leaves(case: Case, data: st.DataObject) -> None:
    shape, axes = case
    dropped = sorted(data.draw(st.sets(st.sampled_from(range(len(shape))))))
    x = _numbers(shape)
    file = x.transpose(axes).sum(tuple(axes.index(i) for i in dropped))
    assert np.array_equal(x.sum(tuple(dropped)).transpose(without(axes, dropped)), file)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Two shapes of as many elements, by splitting and joining, and a layout of the first."""
    factors = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        shape = [1]
        for factor in factors:
            if draw(st.booleans()):
                shape[-1] *= factor
            else:
                shape.append(factor)
            if draw(st.integers(0, 4)) == 0:
                shape.append(1)
        return tuple(shape)

    before, after = grouped(), grouped()
    return before, after, tuple(draw(st.permutations(range(len(before)))))


@given(reshapes())
def test_a_reshape_that_moves_nothing_is_true(
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    before, after, axes = case
    found = reshaped(before, after, axes)
    x = _numbers(before)
    if found is not None:
        assert sorted(found) == list(range(len(after)))
        file = x.transpose(axes)
        assert np.array_equal(file.reshape(laid(after, found)), x.reshape(after).transpose(found))
    if axes == identity(len(before)):
        # ONNX's own order never needs to move, and stays ONNX's but for ones.
        assert found is not None
        assert is_free(after, found, identity(len(after)))


@given(laid_shapes((3, 5)), st.data())
def test_a_reshape_of_parts_that_stand_together_is_found(case: Case, data: st.DataObject) -> None:
    """Splitting one axis in two never needs data to move, whatever the layout."""
    shape, axes = case
    at = data.draw(st.integers(0, len(shape) - 1))
    after = (*shape[:at], shape[at], 1, *shape[at + 1 :])
    assert reshaped(shape, after, axes) is not None


@given(st.integers(1, 6))
def test_channels_last_is_a_permutation(rank: int) -> None:
    assert sorted(channels_last(rank)) == list(range(rank))


@given(
    size=st.integers(1, 40), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 3)
)
def test_same_covers_the_input(size: int, kernel: int, stride: int, dilation: int) -> None:
    """One window for each stride, and no more padding than they read."""
    reach = (kernel - 1) * dilation + 1
    front, end = same_pads(size, reach, stride)
    windows = -(-size // stride)
    assert 0 <= end - front <= 1
    assert front + size + end >= (windows - 1) * stride + reach
    assert (front, end) == (0, 0) or front + size + end == (windows - 1) * stride + reach


@given(
    sizes=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_a_padding_says_just_these_pads(
    sizes: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], pads: list[int]
) -> None:
    found = padding_of(sizes, kernel, strides, (1, 1), pads)
    wanted = ((pads[0], pads[2]), (pads[1], pads[3]))
    by_same = tuple(same_pads(n, k, s) for n, k, s in zip(sizes, kernel, strides, strict=True))
    meant = by_same if found.same else found.explicit or ((0, 0), (0, 0))
    assert meant == wanted
    assert found != Padding(same=False, explicit=((0, 0), (0, 0)))
