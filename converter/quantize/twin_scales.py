"""Scales that an ONNX graph and its TFLite twin can share.

For: `twin_scales()`: parameters of every tensor under the rules of `converter.quantize.twin_rules`: outputs
that kernels prescribe, one scale for what an operator only moves or joins, and where two rules meet in one
tensor a requantization on the edge that does least harm.
Not for: which nodes run in integers (`converter.quantize.units`), or checking a graph
(`converter.quantize.twin`).

Tensors that must be equal are a group (union-find). Operators with one input never bring two groups together,
for their output is new; only those that join several tensors do, and there it is decided, input by input:

- the joined range is the union of the ranges, or what a kernel prescribes for one of them where all fit into
  it and lose at most one bit;
- an input with another prescribed scale, or whose absorbed Relu or Clip the joined range would no longer
  bound, or which others read too and that would lose more than a bit, keeps its own parameters; the joining
  operator reads it through a second Q/DQ pair (TFLite's QUANTIZE);
- every other input takes the joined range itself: it is stored only once, and rounded only once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from converter.quantize.even_sums import KINDS, evened
from converter.quantize.operators import Fixed, Role
from converter.quantize.qparams import QParams, fixed_params, of_range, redundant
from converter.quantize.twin_refusals import padding
from converter.quantize.twin_rules import MOVES, PADDING_FACTOR_MAX, STEP_FACTOR_MAX
from converter.quantize.units import Unit, bounds_of
from converter.quantize.view import View
from converter.recipe import Recipe
from wire.figures import Interval

_NAMED_MAX = 8

Edge = tuple[str, str]
"""Node and the tensor that it reads."""


class Scales(Struct, frozen=True, kw_only=True, eq=False):
    """Parameters of a twin's tensors.

    Attributes:
        activations: by tensor, in the graph's order.
        edges: of inputs and constants that a node reads in other parameters than the tensor's own.
        groups: by tensor the one that speaks for all of its scale.
        decisions: what is requantized, in words.
    """

    activations: Mapping[str, QParams]
    edges: Mapping[Edge, QParams]
    groups: Mapping[str, str]
    decisions: tuple[str, ...]


_EVEN_FACTOR_MAX = 1.5
"""How much coarser a step may become for a zero point in the middle."""


class _Group(Struct, eq=False):
    """Tensors of one scale.

    Attributes:
        members: names of the tensors that nothing but movement ties to the head.
        low: smallest real value to be held.
        high: largest.
        pads: what is put around its tensors.
        fixed: what a kernel prescribes.
        bounds: what absorbed activations let through: the parameters must bound it as they do.
        step_max: coarsest step that those who read it beside a joining operator put up with.
        multiplied: a product of two computed matrices reads one of its tensors as its second. XNNPACK takes
            such a product only where that one's zero point is 0 (an attention block in INT8 took 214 us with
            another and 120 us so).
    """

    members: list[str] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    pads: list[float] = field(default_factory=list)
    fixed: Fixed | None = None
    bounds: list[tuple[float, float]] = field(default_factory=list)
    step_max: float = math.inf
    multiplied: bool = False

    @property
    def symmetric(self) -> bool:
        """Whether zero stands in the middle: where that is wanted, and costs less than half a bit or so."""
        span = self.high - self.low
        return (
            self.multiplied and not self.bounds and 2 * max(-self.low, self.high) <= _EVEN_FACTOR_MAX * span
        )

    def widen(self) -> None:
        """Makes room for what is put around, within PADDING_FACTOR_MAX."""
        most = PADDING_FACTOR_MAX * (self.high - self.low)
        for value in self.pads:
            low, high = min(self.low, value), max(self.high, value)
            if high - low <= most:
                self.low, self.high = low, high


def twin_scales(
    view: View, chosen: Mapping[str, Unit], ranges: Mapping[str, Interval], recipe: Recipe
) -> Scales:
    """Parameters of every tensor that an integer unit reads or makes.

    Args:
        view: of the graph, with `TWIN_OPERATORS`.
        chosen: the units that run in integers.
        ranges: of activations by tensor name; a tensor that is moved takes its source's.
        recipe: types, and `sym`.

    Ensures: every rule of `twin_rules` holds for the chosen units; equal arguments give equal scales.
    """
    return _Solver(view, chosen, ranges, recipe).solve()


class _Solver:
    """One graph's groups in the making."""

    def __init__(
        self, view: View, chosen: Mapping[str, Unit], ranges: Mapping[str, Interval], recipe: Recipe
    ) -> None:
        self._view, self._chosen, self._ranges, self._recipe = view, chosen, ranges, recipe
        self._maker = {name: unit for unit in chosen.values() for name in unit.outputs}
        needed = {name for unit in chosen.values() for name in (*unit.inputs, *unit.outputs)}
        inputs = [value.name for value in view.model.graph.input]
        made = [name for node in view.nodes for name in node.output]
        self._names = [name for name in (*inputs, *made) if name in needed]
        self._parent = {name: name for name in self._names}
        self._groups: dict[str, _Group] = {}
        self._edges: dict[Edge, str] = {}
        self._said: list[str] = []

    def solve(self) -> Scales:
        for name in self._names:
            unit = self._maker.get(name)
            if unit is not None and unit.operator.role is Role.SAME_SCALE:
                self._parent[name] = unit.inputs[0]
                self._groups[self._root(name)].pads += self._pads(unit)
            else:
                self._groups[name] = self._head(name, unit)
            self._groups[self._root(name)].members.append(name)
        self._note_products()
        for head, group in self._groups.items():
            group.widen()
            unit = self._maker.get(head)
            if unit is None or unit.operator.role is not Role.JOINED:
                self._claim(head)
        for node in self._view.nodes:
            unit = self._chosen.get(node.name)
            if unit is not None and unit.operator.role is Role.JOINED:
                self._join(unit)
        return self._scales()

    def _note_products(self) -> None:
        """Marks the groups of second factors."""
        for node in self._view.nodes:
            right = node.input[1] if node.name in self._chosen and node.op_type == "MatMul" else ""
            if right in self._parent:
                self._groups[self._root(right)].multiplied = True

    def _head(self, name: str, unit: Unit | None) -> _Group:
        """The group that begins with a tensor which nothing moved."""
        span = self._ranges[name]
        group = _Group(low=min(span.low, 0.0), high=max(span.high, 0.0))
        if unit is not None and unit.operator.role is not Role.JOINED:
            group.fixed = unit.operator.fixed
        bounds = None
        if unit is not None and unit.absorbed is not None:
            bounds = bounds_of(self._view, self._view.by_name[unit.absorbed])
        if bounds is not None:
            group.bounds.append(bounds)
        return group

    def _pads(self, unit: Unit) -> list[float]:
        """What a Pad puts around."""
        value = padding(self._view, self._view.by_name[unit.node]) if unit.op_type == "Pad" else None
        return [] if value is None else [value]

    def _root(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _params(self, group: _Group) -> QParams:
        dtype = self._recipe.activation
        if group.fixed is not None:
            return fixed_params(group.fixed.scale, group.fixed.zero_point, dtype)
        symmetric = self._recipe.symmetric or group.symmetric
        return of_range(group.low, group.high, dtype, symmetric=symmetric)

    def _claim(self, head: str) -> None:
        """Notes how coarse a group may become for those of its readers that do not move it on."""
        group = self._groups[head]
        if any(self._has_other_readers(name) for name in group.members):
            group.step_max = min(group.step_max, STEP_FACTOR_MAX * float(self._params(group).scale))

    def _has_other_readers(self, name: str) -> bool:
        """Whether a reader computes with the stored numbers; what is made in float, floats read exactly."""
        readers = self._view.readers.get(name, [])
        units = [self._chosen.get(node.name) for node in readers]
        if any(unit is not None and unit.operator.role not in MOVES for unit in units):
            return True
        shown = name in self._view.outputs or name in self._view.captured or None in units
        return shown and name in self._maker

    def _join(self, unit: Unit) -> None:
        """Brings the groups of a joining operator's inputs together, or requantizes on the edge."""
        node, out = self._view.by_name[unit.node], unit.outputs[0]
        heads = {name: self._root(name) for name in unit.inputs}
        constants = [n for n in dict.fromkeys(self._view.data_inputs(node)) if n not in heads]
        whole = self._union(unit, heads, constants)
        whole.members, whole.pads = self._groups[out].members, self._groups[out].pads
        whole.widen()
        whole.fixed = self._prescribed(whole, [self._groups[head].fixed for head in heads.values()])
        wanted = self._params(whole)
        apart = {head: _apart(self._groups[head], whole, wanted) for head in heads.values()}
        for name, head in heads.items():
            why = apart[head]
            if why is not None:
                self._edges[unit.node, name] = out
                self._said.append(f"{node.op_type} {node.name} reads {name} requantized: {why}")
        for head, why in apart.items():
            if why is None:
                self._absorb(whole, head, out)
        self._edges |= {(unit.node, name): out for name in constants}
        self._groups[out] = whole
        self._claim(out)

    def _absorb(self, whole: _Group, head: str, out: str) -> None:
        group = self._groups.pop(head)
        whole.bounds += group.bounds
        whole.step_max = min(whole.step_max, group.step_max)
        whole.multiplied |= group.multiplied
        self._parent[head] = out

    def _union(self, unit: Unit, heads: Mapping[str, str], constants: Iterable[str]) -> _Group:
        """A group that holds whatever the operator reads."""
        whole = _Group()
        spans = [(group.low, group.high) for group in (self._groups[head] for head in heads.values())]
        for name in constants:
            values = self._view.constant(name)
            if values is None:
                raise RuntimeError(f"{unit.node} was taken for integer with {name}, which is no constant")
            spans.append((float(values.min(initial=0.0)), float(values.max(initial=0.0))))
        whole.low = min(0.0, *(low for low, _ in spans))
        whole.high = max(0.0, *(high for _, high in spans))
        return whole

    def _prescribed(self, whole: _Group, found: Iterable[Fixed | None]) -> Fixed | None:
        """The first prescribed output that holds the union without losing more than a bit."""
        step = float(self._params(whole).scale)
        for fixed in found:
            if fixed is not None and fixed.scale <= STEP_FACTOR_MAX * step:
                low, high = fixed_params(fixed.scale, fixed.zero_point, self._recipe.activation).interval
                if low <= whole.low and whole.high <= high + fixed.scale:
                    return fixed
        return None

    def _even(self, params: dict[str, QParams]) -> None:
        """Widens outputs of sums and products a little where the runtimes would round some of them apart.

        In the graph's order, so that an input is final before its sum is; a group is changed at most once.
        """
        final: set[str] = set()
        widened = 0
        for node in self._view.nodes:
            unit = self._chosen.get(node.name)
            if unit is None or node.op_type not in KINDS or any(x not in self._parent for x in node.input):
                continue
            left, right = (self._root(name) for name in node.input)
            head = self._root(unit.outputs[0])
            if head not in {left, right, *final} and self._groups[head].fixed is None:
                found = evened(node.op_type, params[left], params[right], params[head])
                if found is not None and all(redundant(one, found) for one in self._groups[head].bounds):
                    widened += not found.same_as(params[head])
                    params[head] = found
            final |= {left, right, head}
        if widened:
            self._said.insert(
                0, f"{widened} scales of sums and products are wider, for both runtimes to round alike"
            )

    def _scales(self) -> Scales:
        params = {head: self._params(group) for head, group in self._groups.items()}
        self._even(params)
        return Scales(
            activations={name: params[self._root(name)] for name in self._names},
            edges={edge: params[self._root(out)] for edge, out in self._edges.items()},
            groups={name: self._root(name) for name in self._names},
            decisions=self._words(),
        )

    def _words(self) -> tuple[str, ...]:
        more = len(self._said) - _NAMED_MAX
        said = self._said[:_NAMED_MAX]
        return (*said, f"and {more} more tensors are requantized") if more > 0 else tuple(said)


def _apart(group: _Group, whole: _Group, wanted: QParams) -> str | None:
    """Why a group keeps its own parameters, or None where it takes the joined ones."""
    joined = f"{whole.low:.4g} to {whole.high:.4g}"
    if group.fixed is not None and group.fixed != whole.fixed:
        return f"its scale is {group.fixed.scale:.6g} by rule, the joined range {joined}"
    if not all(redundant(bounds, wanted) for bounds in group.bounds):
        return f"the joined range {joined} would let through what its activation cuts"
    if float(wanted.scale) > group.step_max:
        return f"others read it too, in steps finer than the joined {float(wanted.scale):.4g}"
    return None
