"""Random small networks, grown node by node from numbers that a test draws.

For: property tests of the TFLite writer: any mix of convolutions, pools, sums, moved axes and matrices.
Not for: trained networks; weights are noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Grower:
    """One graph in the making; `x` is its input, and the newest tensor its output."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._known: list[tuple[str, Shape]] = [("x", shape)]
        self._shape = shape

    @property
    def newest(self) -> tuple[str, Shape]:
        return self._known[-1]

    def model(self) -> onnx.ModelProto:
        name, shape = self.newest
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self._shape[1:]])
        y = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape[1:]])
        made = helper.make_graph(self._nodes, "grown", [x], [y], self._constants)
        found = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(found, full_check=True)
        return found

    def grow(self, choice: int) -> None:
        """One node more, of those that the newest tensor allows."""
        _, shape = self.newest
        allowed = [grow for ranks, grow in _KINDS if len(shape) in ranks]
        allowed[choice % len(allowed)](self)

    def pick(self, *choices: int) -> int:
        return int(self._random.choice(choices))

    def some(self, n: int, count: int) -> NDArray[np.int64]:
        """`count` different numbers below `n`."""
        return self._random.permutation(n)[:count]

    def floats(self, *shape: int, scale: float = 0.3) -> str:
        return self.constant((self._random.normal(0, 1, shape) * scale).astype(np.float32))

    def constant(self, values: NDArray[Any]) -> str:
        name = f"k{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op_type: str, inputs: list[str], shape: Shape, **attributes: Any) -> None:  # noqa: ANN401
        name = f"t{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(op_type, inputs, [name], name=f"n{len(self._nodes)}", **attributes)
        )
        self._known.append((name, shape))

    def other(self, *, fits: Callable[[Shape], bool]) -> str:
        """An older tensor of a shape that fits, or a constant of the newest one's without its batch."""
        _, shape = self.newest
        found = [n for n, s in self._known[:-1] if fits(s)]
        if found and self.pick(0, 1):
            return found[self.pick(*range(len(found)))]
        return self.floats(1, *shape[1:]) if self.pick(0, 1) else self.floats(shape[-1])


def _conv(g: Grower) -> None:
    """Plain, grouped by channel or depthwise, over one or two axes."""
    name, (n, c, *sizes) = g.newest
    spatial = range(len(sizes))
    kernel = [g.pick(1, min(3, size)) for size in sizes]
    strides = [g.pick(1, 1, 2) for _ in spatial]
    pads = [g.pick(0, 1) if kernel[i % len(sizes)] > 1 else 0 for i in range(2 * len(sizes))]
    group = c if g.pick(0, 1) else 1
    out = c * g.pick(1, 1, 2) if group > 1 else g.pick(2, 3, 4)
    made = [(sizes[i] + pads[i] + pads[i + len(sizes)] - kernel[i]) // strides[i] + 1 for i in spatial]
    inputs = [name, g.floats(out, c // group, *kernel)] + ([g.floats(out)] if g.pick(0, 1) else [])
    g.add("Conv", inputs, (n, out, *made), strides=strides, pads=pads, group=group)


def _relu(g: Grower) -> None:
    name, shape = g.newest
    if g.pick(0, 1):
        g.add("Relu", [name], shape)
    else:
        bounds = [g.constant(np.array(x, np.float32)) for x in (0.0, 6.0)]
        g.add("Clip", [name, *bounds], shape)


def _pool(g: Grower) -> None:
    name, (n, c, *sizes) = g.newest
    if min(sizes) < 2:
        g.add("GlobalAveragePool", [name], (n, c, *(1 for _ in sizes)))
        return
    stride = g.pick(1, 2)
    made = [(size - 2) // stride + 1 for size in sizes]
    kind = ("MaxPool", "AveragePool")[g.pick(0, 1)]
    window = {"kernel_shape": [2 for _ in sizes], "strides": [stride for _ in sizes]}
    g.add(kind, [name], (n, c, *made), **window)


def _sum(g: Grower) -> None:
    name, shape = g.newest
    kind = ("Add", "Mul", "Sub")[g.pick(0, 1, 2)]
    pair = [name, g.other(fits=lambda s: s == shape)]
    g.add(kind, pair[:: g.pick(1, -1)], shape)


def _concat(g: Grower) -> None:
    name, shape = g.newest
    axis = g.pick(*range(1, len(shape)))
    fits = [
        (n, s) for n, s in g._known if len(s) == len(shape)
        and all(a == b for i, (a, b) in enumerate(zip(s, shape, strict=True)) if i != axis)
    ]  # fmt: skip
    other, there = fits[g.pick(*range(len(fits)))]
    sizes = list(shape)
    sizes[axis] += there[axis]
    g.add("Concat", [name, other], tuple(sizes), axis=axis)


def _transpose(g: Grower) -> None:
    name, shape = g.newest
    order = [0, *(int(i) for i in g.some(len(shape) - 1, len(shape)) + 1)]
    g.add("Transpose", [name], tuple(shape[i] for i in order), perm=order)


def _reshape(g: Grower) -> None:
    """Joins two neighbouring axes, or splits one, or flattens all."""
    name, shape = g.newest
    place = g.pick(*range(1, len(shape)))
    sizes = list(shape)
    how = g.pick(0, 1, 2)
    divisors = [d for d in (2, 3) if sizes[place] % d == 0]
    if how == 0 and len(shape) < 5 and divisors:
        divisor = divisors[g.pick(*range(len(divisors)))]
        sizes[place : place + 1] = [divisor, sizes[place] // divisor]
    elif how == 1 and place + 1 < len(sizes):
        sizes[place : place + 2] = [sizes[place] * sizes[place + 1]]
    else:
        sizes = [sizes[0], int(np.prod(sizes[1:]))]
    target = g.constant(np.array([-1, *sizes[1:]], dtype=np.int64))
    g.add("Reshape", [name, target], tuple(sizes))


def _matrix(g: Grower) -> None:
    name, shape = g.newest
    out = g.pick(3, 4, 6)
    if len(shape) == 2 and g.pick(0, 1):
        if g.pick(0, 1):
            g.add("Gemm", [name, g.floats(out, shape[1]), g.floats(out)], (shape[0], out), transB=1)
        else:
            g.add("Gemm", [name, g.floats(shape[1], out)], (shape[0], out))
        return
    g.add("MatMul", [name, g.floats(shape[-1], out)], (*shape[:-1], out))


def _activation(g: Grower) -> None:
    name, shape = g.newest
    kinds = ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softmax")
    kind = kinds[g.pick(*range(len(kinds)))]
    # Of a single element, ONNX Runtime's QLinearSoftmax wraps the answer 1 around to 0.
    axes = [i for i in range(1, len(shape)) if shape[i] > 1]
    if kind == "Softmax" and axes:
        g.add(kind, [name], shape, axis=axes[g.pick(*range(len(axes)))])
    else:
        g.add("Tanh" if kind == "Softmax" else kind, [name], shape)


def _reduce(g: Grower) -> None:
    name, shape = g.newest
    count = g.pick(*range(1, len(shape)))
    axes = sorted(int(i) for i in g.some(len(shape) - 1, count) + 1)
    keep = g.pick(0, 1) if count < len(shape) - 1 else 1
    kind = ("ReduceMean", "ReduceMax")[g.pick(0, 1)]
    made = tuple(1 if i in axes else size for i, size in enumerate(shape) if keep or i not in axes)
    g.add(kind, [name], made, axes=axes, keepdims=keep)


def _squeeze(g: Grower) -> None:
    """Drops an axis of length 1, or adds one."""
    name, shape = g.newest
    ones = [i for i, size in enumerate(shape) if i and size == 1]
    if ones and len(shape) > 2:
        place = ones[g.pick(*range(len(ones)))]
        g.add("Squeeze", [name, g.constant(np.array([place]))], shape[:place] + shape[place + 1 :])
    elif len(shape) < 5:
        place = g.pick(*range(1, len(shape) + 1))
        g.add("Unsqueeze", [name, g.constant(np.array([place]))], (*shape[:place], 1, *shape[place:]))


def _with_itself(g: Grower) -> None:
    """A matrix times its transpose: both operands are computed."""
    name, shape = g.newest
    swapped = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    g.add("Transpose", [name], tuple(shape[i] for i in swapped), perm=list(swapped))
    pair = [name, g.newest[0]]
    g.add("MatMul", pair, (*shape[:-1], shape[-2]))


_IMAGES, _ANY = frozenset({3, 4}), frozenset({2, 3, 4, 5})
_KINDS: list[tuple[frozenset[int], Callable[[Grower], None]]] = [
    (_IMAGES, _conv), (_IMAGES, _conv), (_IMAGES, _pool), (_ANY, _relu), (_ANY, _sum), (_ANY, _concat),
    (frozenset({3, 4, 5}), _transpose), (frozenset({3, 4, 5}), _reshape), (frozenset({2, 3, 4}), _matrix),
    (_ANY, _activation), (frozenset({3, 4, 5}), _reduce), (_ANY, _squeeze), (_IMAGES, _with_itself),
]  # fmt: skip


def grown(seed: int, choices: list[int], shape: Shape = (1, 4, 6, 6)) -> onnx.ModelProto:
    """A checked model of one input `x` `[N, *shape[1:]]` with a node for each choice."""
    grower = Grower(seed, shape)
    for choice in choices:
        grower.grow(choice)
    return grower.model()
