"""Plans of twins give sums the scales with which both runtimes round alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from converter.quantize.even_sums import is_even
from converter.quantize.plan import Plan, make_plan
from converter.recipe import parse
from tests.converter.quantizing import Line, floats, graph, material

_TWIN = parse("static_wi8_ai8_pc_minmax_twin")
_SAME = {"pads": [1, 1, 1, 1]}


def _weights(seed: int, *names: str) -> dict[str, np.ndarray]:
    return {name: floats(seed * 100 + i, 3, 3, 3, 3) for i, name in enumerate(names)}


def _residual(seed: int) -> onnx.ModelProto:
    """Four sums, each read by the next."""
    lines: list[Line] = []
    last = "x"
    for i in range(4):
        lines += [("Conv", f"{last} w{i}", f"c{i}", _SAME), (("Add", "Sub")[i % 2], f"{last} c{i}", f"s{i}")]
        last = f"s{i}"
    weights = _weights(seed, "w0", "w1", "w2", "w3")
    return graph(lines, weights, outputs={"s3": [None] * 4})


def _joined(seed: int) -> onnx.ModelProto:
    """Two sums of one scale, for a Concat joins them."""
    return graph(
        [("Conv", "x w0", "c0", _SAME), ("Conv", "x w1", "c1", _SAME), ("Add", "x c0", "s0"),
         ("Add", "c0 c1", "s1"), ("Concat", "s0 s1", "y", {"axis": 1})],
        _weights(seed, "w0", "w1"), outputs={"y": [None] * 4},
    )  # fmt: skip


def _plan(made: onnx.ModelProto) -> Plan:
    known = material(made)
    return make_plan(known, _TWIN, known.calibration.ranges)


def _is_even(plan: Plan, kind: str, *names: str) -> bool:
    (a, za), (b, zb), (y, zy) = (
        (np.float32(one.scale), int(one.zero_point)) for one in (plan.activations[name] for name in names)
    )
    return is_even(kind, (a, za, b, zb), (y, zy))


@pytest.mark.parametrize("seed", range(4))
def test_every_sum_of_a_residual_network_is_even(seed: int) -> None:
    plan = _plan(_residual(seed))
    for i in range(4):
        left = "x" if i == 0 else f"s{i - 1}"
        assert _is_even(plan, ("Add", "Sub")[i % 2], left, f"c{i}", f"s{i}"), i


def test_widened_scales_are_said() -> None:
    plans = [_plan(_residual(seed)) for seed in range(4)]
    assert any("wider, for both runtimes to round alike" in " ".join(plan.decisions) for plan in plans)


@pytest.mark.parametrize("seed", range(8))
def test_a_scale_that_is_right_for_one_sum_is_not_changed_for_the_next(seed: int) -> None:
    plan = _plan(_joined(seed))
    assert plan.activations["s0"].same_as(plan.activations["s1"])
    assert _is_even(plan, "Add", "x", "c0", "s0")
