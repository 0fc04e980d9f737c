"""PURE. The algebra of axes: how a tensor lies in the file against how ONNX names its axes.

For: permutations. A tensor with logical shape S lies in the file with shape [S[i] for i in axes]; `axes` is
its layout. NCHW images lie as NHWC with axes (0, 2, 3, 1). Composition, what brings one layout to another,
what a reshape makes of a layout without moving data, and TFLite's paddings.
Not for: tensors themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

Axes = tuple[int, ...]
Shape = tuple[int, ...]


def identity(rank: int) -> Axes:
    """The layout that ONNX itself has."""
    return tuple(range(rank))


def channels_last(rank: int) -> Axes:
    """The layout of TFLite's convolutions: axis 1 behind all others.

    >>> channels_last(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def laid(shape: Shape, axes: Axes) -> Shape:
    """The shape in the file."""
    return tuple(shape[i] for i in axes)


def moved(axes: Axes, permutation: Axes) -> Axes:
    """The layout after an ONNX Transpose by `permutation` that moves nothing: the axes get new names.

    >>> moved((0, 2, 3, 1), (0, 2, 3, 1))
    (0, 1, 2, 3)
    """
    return tuple(permutation.index(i) for i in axes)


def between(have: Axes, want: Axes) -> Axes:
    """The permutation with which TRANSPOSE brings one layout to the other.

    >>> between((0, 1, 2, 3), (0, 2, 3, 1))
    (0, 2, 3, 1)
    """
    return tuple(have.index(i) for i in want)


def is_free(shape: Shape, have: Axes, want: Axes) -> bool:
    """Whether going from one layout to the other moves only axes of length 1, so that a RESHAPE does it."""
    return [i for i in have if shape[i] != 1] == [i for i in want if shape[i] != 1]


def without(axes: Axes, dropped: Sequence[int]) -> Axes:
    """The layout once logical axes are gone; the others are numbered anew.

    >>> without((0, 2, 3, 1), (2, 3))
    (0, 1)
    """
    kept = [i for i in range(len(axes)) if i not in set(dropped)]
    return tuple(kept.index(i) for i in axes if i in kept)


def reshaped(before: Shape, after: Shape, axes: Axes) -> Axes | None:
    """The layout behind a reshape that moves no data; None where data must be put in ONNX's order first.

    Both shapes are cut into the smallest runs of axes with equal products. Data stays where it is if every
    run's axes stand next to one another and in order in the file; ones stand anywhere.

    Args:
        before: logical shape, all lengths above 0.
        after: logical shape of as many elements.
        axes: layout before.

    >>> reshaped((1, 8, 4, 4), (1, 8, 16), (0, 2, 3, 1))
    (0, 2, 1)
    >>> reshaped((1, 8, 4, 4), (1, 128), (0, 2, 3, 1)) is None
    True
    """
    if 0 in before or 0 in after:
        return None
    order = [i for i in axes if before[i] != 1]
    placed: list[tuple[int, list[int]]] = []
    for old, new in _runs(before, after):
        real = [i for i in old if before[i] != 1]
        if real:
            at = order.index(real[0])
            if order[at : at + len(real)] != real:
                return None
        else:
            at = -1
        placed.append((at, new))
    # Runs of ones alone have no place of their own: they stay behind the run that they follow.
    result: list[int] = []
    keyed: list[tuple[int, int, list[int]]] = []
    last = -1
    for number, (at, new) in enumerate(placed):
        last = at if at >= 0 else last
        keyed.append((last, number, new))
    for _, _, new in sorted(keyed, key=lambda one: one[:2]):
        result += new
    return tuple(result)


def _runs(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products, in order; ones join the run that stands before them."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        left = right = 1
        if i < len(before):
            old, left, i = [i], before[i], i + 1
        if j < len(after):
            new, right, j = [j], after[j], j + 1
        while left != right:
            if left < right:
                old.append(i)
                left, i = left * before[i], i + 1
            else:
                new.append(j)
                right, j = right * after[j], j + 1
        runs.append((old, new))
    return runs


class Padding(Struct, frozen=True, kw_only=True):
    """How a window's padding is written.

    Attributes:
        same: SAME rather than VALID.
        explicit: (before, after) by spatial axis of a PAD in front; empty for none.
    """

    same: bool
    explicit: tuple[tuple[int, int], ...] = ()


def padding_of(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int],
) -> Padding:  # fmt: skip
    """SAME or VALID where one of them gives just these pads, else an explicit PAD before VALID.

    TFLite's SAME pads by max((ceil(size / stride) - 1) * stride + reach - size, 0), half of it (rounded
    down) in front (tensorflow/lite/kernels/padding.h).

    Args:
        sizes: spatial lengths of the input.
        kernel: of the window.
        strides: per spatial axis.
        dilations: per spatial axis.
        pads: ONNX's: all fronts, then all ends.
    """
    n = len(sizes)
    wanted = tuple((int(pads[i]), int(pads[i + n])) for i in range(n))
    spans = zip(sizes, kernel, strides, dilations, strict=True)
    same = tuple(same_pads(size, (k - 1) * d + 1, s) for size, k, s, d in spans)
    if wanted == tuple((0, 0) for _ in range(n)):
        return Padding(same=False)
    return Padding(same=True) if wanted == same else Padding(same=False, explicit=wanted)


def same_pads(size: int, reach: int, stride: int) -> tuple[int, int]:
    """What TFLite's SAME puts before and behind.

    >>> same_pads(28, 3, 2)
    (0, 1)
    """
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2
