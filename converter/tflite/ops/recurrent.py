"""Recurrent networks, unrolled over their fixed length.

For: LSTM, GRU and RNN in float, forward, reverse and in both directions, with either layout: FULLY_CONNECTED
for all steps' inputs at once, then one for each step's state. (TFLite's own sequence LSTM keeps its state
from one run to the next, and has no GRU beside it.)
Not for: sequences of several lengths, or more steps than STEPS_MAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Axes
from converter.tflite.lowering import Lowering
from converter.tflite.ops.conv import Filter
from converter.tflite.ops.entry import Entry
from converter.tflite.ops.linear import dense, matrix
from converter.tflite.ops.pieces import binary, unary
from converter.tflite.reading import Array, Op
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

STEPS_MAX = 512
"""Of all directions together: every step is about a dozen operators of the file."""
_LENGTHS, _STATE, _PEEPHOLES = 4, 5, 7
"""Places of inputs."""
_ACTIVATIONS = {"GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"], "RNN": ["tanh"]}
_STATES = {"GRU": 1, "LSTM": 2, "RNN": 1}


class _Way(Struct, frozen=True, kw_only=True, eq=False):
    """One direction.

    Attributes:
        name: for tensors.
        flat: all steps' inputs, `[T * N, I]`.
        steps: T.
        backward: from the last step to the first.
        weight: `[gates * H, I]`.
        recurrence: `[gates * H, H]`.
        bias: of the inputs, `[gates * H]`.
        state_bias: of the state, `[gates * H]`.
    """

    name: str
    flat: Tensor
    steps: int
    backward: bool
    weight: Array
    recurrence: Array
    bias: Array
    state_bias: Array

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.recurrence.shape[1])


Ran = tuple[list[Tensor], list[Tensor]]
"""The outputs `[N, H]` of all steps in the order in which they ran, and the last states."""
Run = Callable[[Lowering, Op, _Way, list[Tensor]], Ran]


def recurrent(b: Lowering, op: Op) -> None:
    """Writes one LSTM, GRU or RNN."""
    batch_first = bool(op.attributes.get("layout", 0))
    axes: Axes = (1, 0, 2) if batch_first else (0, 1, 2)
    shape = b.shape(op.inputs[0])
    steps, n = shape[axes[0]], shape[axes[1]]
    _check(b, op, steps)
    x = b.take(op.inputs[0], axes)
    flat = b.reshape(x, (steps * n, shape[2]), f"{op.name}_inputs")
    ways = _ways(b, op, flat, steps)
    starts = [_starts(b, op, place, ways, n, batch_first=batch_first) for place in range(_STATES[op.op_type])]
    ran = []
    for number, way in enumerate(ways):
        outputs, states = _RUNS[op.op_type](b, op, way, [start[number] for start in starts])
        ran.append((outputs[::-1] if way.backward else outputs, states))
    _all_steps(b, op, [outputs for outputs, _ in ran], batch_first=batch_first)
    for place in range(_STATES[op.op_type]):
        _last(b, op, 1 + place, [states[place] for _, states in ran], batch_first=batch_first)


def _check(b: Lowering, op: Op, steps: int) -> None:
    """Refuses what is not unrolled here, by name."""
    both = op.attributes.get("direction", "forward") == "bidirectional"
    total = steps * (2 if both else 1)
    if total > STEPS_MAX:
        raise TFLiteError(
            "tflite_size", f"{op.where} unrolls to {total} steps, at most {STEPS_MAX}: use a shorter sequence"
        )
    for name in ("clip", "input_forget"):
        if op.attributes.get(name, 0):
            raise TFLiteError("tflite_attribute", f"{op.where} has {name} {op.attributes[name]}")
    wanted = _ACTIVATIONS[op.op_type] * (2 if both else 1)
    given = [_word(one) for one in op.attributes.get("activations", wanted)]
    if given != wanted:
        raise TFLiteError("tflite_attribute", f"{op.where} has the activations {', '.join(given)}")
    if len(op.inputs) > _PEEPHOLES and op.inputs[_PEEPHOLES]:
        raise TFLiteError("tflite_attribute", f"{op.where} has peepholes")
    if len(op.inputs) > _LENGTHS and op.inputs[_LENGTHS]:
        lengths = b.numbers(op, _LENGTHS)
        if (lengths != steps).any():
            raise TFLiteError("tflite_shape", f"{op.where} has sequences shorter than its {steps} steps")


def _word(activation: str | bytes) -> str:
    return (activation.decode() if isinstance(activation, bytes) else activation).lower()


def _ways(b: Lowering, op: Op, flat: Tensor, steps: int) -> list[_Way]:
    """The directions, each with its constants."""
    weights, recurrences = (b.numbers(op, place).astype(np.float32) for place in (1, 2))
    directions, rows, _ = weights.shape
    biases = b.numbers(op, 3, np.zeros((directions, 2 * rows), np.float32)).astype(np.float32)
    reverse = op.attributes.get("direction", "forward") == "reverse"
    return [
        _Way(
            name=f"{op.name}_{i}", flat=flat, steps=steps, backward=reverse or i == 1, weight=weights[i],
            recurrence=recurrences[i], bias=biases[i, :rows], state_bias=biases[i, rows:],
        )
        for i in range(directions)
    ]  # fmt: skip


def _starts(
    b: Lowering, op: Op, place: int, ways: Sequence[_Way], n: int, *, batch_first: bool
) -> list[Tensor]:
    """The first state `[N, H]` of every direction, zeros where none is given."""
    shape = (n, ways[0].hidden)
    given = op.inputs[_STATE + place] if len(op.inputs) > _STATE + place else ""
    if not given:
        zeros = b.new_constant(np.zeros(shape, np.float32), f"{op.name}_start")
        return [zeros] * len(ways)
    tensor = b.take(given, (1, 0, 2) if batch_first else (0, 1, 2))
    return _unpacked(b, tensor, f"{op.name}_start_{place}")


def _all_steps(b: Lowering, op: Op, ran: Sequence[list[Tensor]], *, batch_first: bool) -> None:
    """Output Y: [T, D, N, H] in the file, whatever ONNX's layout is."""
    if not _is_read(b, op, 0):
        return
    made = b.output(op, (1, 2, 0, 3) if batch_first else (0, 1, 2, 3))
    steps, _, n, hidden = made.shape
    stacks = [
        _packed(b, outputs, b.new(f"{op.name}_{i}_outputs", (steps, n, hidden), "float32"), 0)
        for i, outputs in enumerate(ran)
    ]
    if len(stacks) > 1:
        _packed(b, stacks, made, 1)
    else:
        b.reshape_into(stacks[0], made)


def _last(b: Lowering, op: Op, place: int, states: Sequence[Tensor], *, batch_first: bool) -> None:
    """Outputs Y_h and Y_c: [D, N, H] in the file."""
    if _is_read(b, op, place):
        _packed(b, states, b.output(op, (1, 0, 2) if batch_first else (0, 1, 2), place=place), 0)


def _is_read(b: Lowering, op: Op, place: int) -> bool:
    name = op.outputs[place] if place < len(op.outputs) else ""
    return bool(name) and (bool(b.readers(name)) or name in b.source.outputs)


def _packed(b: Lowering, tensors: Sequence[Tensor], made: Tensor, axis: int) -> Tensor:
    options = schema.PackOptionsT()
    options.valuesCount, options.axis = len(tensors), axis
    b.add("PACK", tensors, [made], options)
    return made


def _unpacked(b: Lowering, tensor: Tensor, name: str) -> list[Tensor]:
    """Along the first axis."""
    count, *shape = tensor.shape
    if count == 1:
        return [b.reshape(tensor, tuple(shape), f"{name}_0")]
    made = [b.new(f"{name}_{i}", tuple(shape), tensor.dtype) for i in range(count)]
    options = schema.UnpackOptionsT()
    options.num, options.axis = count, 0
    b.add("UNPACK", [tensor], made, options)
    return made


def _split(b: Lowering, tensor: Tensor, widths: Sequence[int], name: str) -> list[Tensor]:
    """Pieces of `[N, K]` along the last axis."""
    made = [b.new(f"{name}_{i}", (tensor.shape[0], width), tensor.dtype) for i, width in enumerate(widths)]
    axis = b.new_constant(np.array(1, np.int32), f"{name}_axis")
    options = schema.SplitOptionsT() if len(set(widths)) == 1 else schema.SplitVOptionsT()
    options.numSplits = len(widths)
    if len(set(widths)) == 1:
        b.add("SPLIT", [axis, tensor], made, options, version=1)
    else:
        b.add("SPLIT_V", [tensor, b.integers(widths, f"{name}_widths"), axis], made, options)
    return made


def _inputs(b: Lowering, way: _Way, rows: slice, bias: Array, word: str) -> list[Tensor]:
    """What the inputs give to some gates, `[N, K]` for every step in the order in which they run."""
    values = np.ascontiguousarray(way.weight[rows])
    weight = matrix(b, f"{way.name}_{word}_weight", Filter(values=values, quant=None, axis=0))
    width = int(weight.shape[0])
    offset = b.new_constant(np.ascontiguousarray(bias[rows]), f"{way.name}_{word}_bias")
    made = b.new(f"{way.name}_{word}", (way.flat.shape[0], width), "float32")
    whole = dense(b, way.flat, weight, offset, made)
    name = f"{way.name}_{word}"
    cut = b.reshape(whole, (way.steps, way.flat.shape[0] // way.steps, width), f"{name}_steps")
    pieces = _unpacked(b, cut, name)
    return pieces[::-1] if way.backward else pieces


class _Product(Struct, frozen=True, kw_only=True, eq=False):
    """What a state gives to some gates: one weight for all steps."""

    weight: Tensor
    bias: Tensor

    def of(self, b: Lowering, state: Tensor, name: str) -> Tensor:
        """`[N, K]`."""
        made = b.new(name, (state.shape[0], self.weight.shape[0]), "float32")
        return dense(b, state, self.weight, self.bias, made)


def _product(b: Lowering, way: _Way, rows: slice, word: str, bias: Array | None = None) -> _Product:
    values = np.ascontiguousarray(way.recurrence[rows])
    weight = matrix(b, f"{way.name}_{word}_recurrence", Filter(values=values, quant=None, axis=0))
    numbers = np.zeros(weight.shape[0], np.float32) if bias is None else np.ascontiguousarray(bias[rows])
    return _Product(weight=weight, bias=b.new_constant(numbers, f"{way.name}_{word}_state_bias"))


def _lstm(b: Lowering, _op: Op, way: _Way, states: list[Tensor]) -> Ran:
    """ONNX's gates in its order: input, output, forget, cell."""
    hidden, (state, cell) = way.hidden, states
    inputs = _inputs(b, way, slice(None), way.bias + way.state_bias, "gates")
    product = _product(b, way, slice(None), "gates")
    outputs = []
    for t, x in enumerate(inputs):
        name = f"{way.name}_{t}"
        gates = binary(b, "ADD", [x, product.of(b, state, f"{name}_product")], f"{name}_gates")
        doors, fresh = _split(b, gates, [3 * hidden, hidden], f"{name}_parts")
        opened = unary(b, "LOGISTIC", doors, f"{name}_open")
        take, give, keep = _split(b, opened, [hidden] * 3, f"{name}_doors")
        taken = binary(b, "MUL", [take, unary(b, "TANH", fresh, f"{name}_fresh")], f"{name}_taken")
        kept = binary(b, "MUL", [keep, cell], f"{name}_kept")
        cell = binary(b, "ADD", [kept, taken], f"{name}_cell")
        state = binary(b, "MUL", [give, unary(b, "TANH", cell, f"{name}_bounded")], f"{name}_state")
        outputs.append(state)
    return outputs, [state, cell]


def _gru(b: Lowering, op: Op, way: _Way, states: list[Tensor]) -> Ran:
    """ONNX's gates in its order: update, reset, hidden. H' = h + z * (H - h)."""
    hidden, (state,) = way.hidden, states
    doors, rest = slice(0, 2 * hidden), slice(2 * hidden, None)
    before = bool(op.attributes.get("linear_before_reset", 0))
    both = way.bias + way.state_bias
    gates, fresh = (
        _inputs(b, way, doors, both, "gates"), _inputs(b, way, rest, way.bias if before else both, "fresh"),
    )  # fmt: skip
    to_gates = _product(b, way, doors, "gates")
    to_fresh = _product(b, way, rest, "fresh", way.state_bias if before else None)
    outputs = []
    for t, (x, new) in enumerate(zip(gates, fresh, strict=True)):
        name = f"{way.name}_{t}"
        total = binary(b, "ADD", [x, to_gates.of(b, state, f"{name}_product")], f"{name}_gates")
        update, reset = _split(b, unary(b, "LOGISTIC", total, f"{name}_open"), [hidden] * 2, f"{name}_doors")
        if before:
            inner = to_fresh.of(b, state, f"{name}_linear")
            inner = binary(b, "MUL", [reset, inner], f"{name}_reset")
        else:
            inner = binary(b, "MUL", [reset, state], f"{name}_reset")
            inner = to_fresh.of(b, inner, f"{name}_linear")
        candidate = unary(b, "TANH", binary(b, "ADD", [new, inner], f"{name}_sum"), f"{name}_candidate")
        moved = binary(
            b, "MUL", [update, binary(b, "SUB", [state, candidate], f"{name}_way")], f"{name}_moved"
        )
        state = binary(b, "ADD", [candidate, moved], f"{name}_state")
        outputs.append(state)
    return outputs, [state]


def _rnn(b: Lowering, _op: Op, way: _Way, states: list[Tensor]) -> Ran:
    (state,) = states
    inputs = _inputs(b, way, slice(None), way.bias + way.state_bias, "inputs")
    product = _product(b, way, slice(None), "state")
    outputs = []
    for t, x in enumerate(inputs):
        name = f"{way.name}_{t}"
        total = binary(b, "ADD", [x, product.of(b, state, f"{name}_product")], f"{name}_sum")
        state = unary(b, "TANH", total, f"{name}_state")
        outputs.append(state)
    return outputs, [state]


_RUNS: dict[str, Run] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}

ENTRIES = dict.fromkeys(_RUNS, Entry(lower=recurrent))
