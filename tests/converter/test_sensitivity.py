"""Sensitivity names the disease, costs are followed kernel by kernel."""

from __future__ import annotations

import numpy as np
import onnx

from converter.fusion import multiplications
from converter.model import signature
from converter.quantize import quantize
from converter.recipe import parse
from converter.repair.cost import costs, kernel_times
from converter.repair.sensitivity import Sensitivity, sensitivities
from converter.repair.switchboard import Assignment, Switchboard
from converter.sensitivity import measure_sensitivity
from tests.converter.builders import conv_net, images, material_of
from tests.converter.repairing import island_planner, outlier_net, read_assignment, samples_of

_RECIPE = parse("static_wi8_au8_pc_minmax")


def _found(made: onnx.ModelProto, islands: int = 2) -> tuple[list[Sensitivity], Switchboard, Assignment]:
    samples = samples_of(images(24))
    full = read_assignment(quantize(material_of(made, samples), _RECIPE).model, made)
    board = Switchboard(
        made, samples, signature(made), tensors=frozenset(full.activations), weights=frozenset(full.weights)
    )
    planner = island_planner(full, made)
    found = sensitivities(board, full, "logits", lambda name: planner(frozenset({name})), islands)
    return found, board, full


def test_the_tensor_with_the_wild_channel_hurts_most_and_its_island_gains_most() -> None:
    found, _, full = _found(outlier_net(3, 300.0))
    worst = [one for one in found if one.kind == "activation"]
    assert {one.tensor for one in worst[:2]} == {"r1", "r3"}
    assert worst[1].noise > 10 * worst[2].noise
    assert (worst[0].gain_db or 0.0) > 1.0
    assert worst[1].island_db is not None
    assert all(one.island_db is None for one in worst[2:])
    assert len(found) == len(full.activations) + len(full.weights)


def test_every_tensor_and_weight_is_measured_once_worst_first() -> None:
    found, board, full = _found(conv_net())
    assert board.evaluations == len(found) + 3, "one each, the whole, and two islands"
    assert [one.noise for one in found] == sorted((one.noise for one in found), reverse=True)
    kinds = {one.tensor: one.kind for one in found}
    assert {name for name, kind in kinds.items() if kind == "weight"} == set(full.weights)
    assert all(one.alone_agreement is not None for one in found)


def test_alone_means_alone() -> None:
    found, board, full = _found(conv_net(), islands=0)
    one = next(s for s in found if s.tensor == "w2")
    only = board.outputs(Assignment(activations={}, weights={"w2": full.weights["w2"]}))["logits"]
    exact = board.reference["logits"]
    assert (
        one.noise
        == np.square(only.astype(np.float64) - exact).mean() / np.square(exact.astype(np.float64)).mean()
    )
    assert all(s.gain_db is None for s in found)


def test_the_chart_says_what_it_was_measured_on() -> None:
    made = outlier_net(3, 300.0)
    material = material_of(made, samples_of(images(24)))
    chart = measure_sensitivity(material, _RECIPE)
    assert (chart.recipe, chart.n_samples) == ("static_wi8_au8_pc_minmax", 24)
    activations = [one for one in chart.tensors if one.kind == "activation"]
    assert activations[0].tensor == "r3"
    assert (activations[0].gain_db or 0.0) > 1.0
    assert chart.evaluations == len(chart.tensors) + 1 + sum(one.island_db is not None for one in activations)
    assert chart.seconds > 0.0


def test_costs_are_times_by_kernel_where_both_graphs_can_be_followed() -> None:
    made = conv_net()
    for place, node in enumerate(made.graph.node):
        node.name = f"node_{place}"
    samples = samples_of(images(24))
    quantized = quantize(material_of(made, samples), _RECIPE).model
    feeds = samples.feeds(0, 1)
    found = costs(made, quantized, feeds)
    assert found.measured
    assert set(found.by_weight) == {"w1", "w2", "w3"}
    assert all(value >= 0.0 for value in found.by_weight.values())
    assert "measured" in found.words
    assert {"node_0", "node_2", "node_6"} <= set(kernel_times(quantized, feeds))


def test_costs_are_multiplications_where_times_say_nothing() -> None:
    made = conv_net()
    feeds = samples_of(images(2)).feeds(0, 1)
    found = costs(made, None, feeds)
    assert not found.measured
    assert found.by_weight == multiplications(made)
    assert "multiplications" in found.words
    other = costs(made, outlier_net(1, 1.0), feeds)
    assert not other.measured, "the graphs' layers have other names"
    shapeless = conv_net()
    shapeless.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    assert set(costs(shapeless, None, feeds).by_weight.values()) == {1.0}
