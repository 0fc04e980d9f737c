"""Streaming ranges equal the ranges of all activations held at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converter.calibrate import augmented, calibrate, outliers
from converter.dataset import Samples, read_description, read_samples
from converter.errors import InputError
from converter.model import signature
from converter.runtime import open_session
from tests.converter.builders import conv_net, images, model, weights


def _samples(array: NDArray[np.float32]) -> Samples:
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def _whole_set(made: onnx.ModelProto, array: NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    """Every activation of the whole set at once, by making each an output."""
    names = [name for node in made.graph.node for name in node.output]
    plain = onnx.ModelProto()
    plain.CopyFrom(made)
    del plain.graph.output[:]
    plain.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    found = open_session(plain.SerializeToString(), optimization="DISABLE_ALL").run(names, {"image": array})
    ranges = {name: (float(a.min()), float(a.max())) for name, a in zip(names, found, strict=True)}
    return ranges | {"image": (float(array.min()), float(array.max()))}


@settings(max_examples=15)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 1000))
def test_batches_give_the_ranges_of_the_whole_set(n: int, batch: int, seed: int) -> None:
    made, array = conv_net(), images(n, seed)
    found = calibrate(made, _samples(array), signature(made), batch=batch)
    expected = _whole_set(made, array)
    assert set(found.ranges) == set(expected)
    assert found.n_samples == n
    for name, (low, high) in expected.items():
        assert found.ranges[name].low == pytest.approx(low, rel=1e-5, abs=1e-6)
        assert found.ranges[name].high == pytest.approx(high, rel=1e-5, abs=1e-6)


def test_a_fixed_batch_of_one_is_run_sample_by_sample() -> None:
    made, array = conv_net(batch=1), images(9)
    free = calibrate(conv_net(), _samples(array), signature(conv_net()))
    found = calibrate(made, _samples(array), signature(made))
    assert found.ranges["logits"].high == pytest.approx(free.ranges["logits"].high, rel=1e-5)


def test_a_run_hands_out_two_numbers_a_tensor() -> None:
    """This is what bounds the memory: no output has an axis."""
    graph, tensors = augmented(conv_net())
    session = open_session(graph.SerializeToString(), optimization="BASIC")
    found = session.run(None, {"image": images(30)})
    assert [value.shape for value in found] == [()] * (2 * len(tensors))
    assert "w1" not in tensors


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_ranges_come_out_in_every_opset(opset: int) -> None:
    made, array = conv_net(opset=opset), images(5)
    assert calibrate(made, _samples(array), signature(made)).ranges["image"].high == array.max()


def test_progress_ends_at_the_number_of_samples() -> None:
    told: list[tuple[int, int]] = []
    made = conv_net()
    calibrate(made, _samples(images(21)), signature(made), lambda done, total: told.append((done, total)), 8)
    assert told == [(8, 21), (16, 21), (21, 21)]


def test_a_tensor_that_overflows_is_named() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Exp", ["image"], ["too_much"]),
        helper.make_node("Flatten", ["too_much"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    made = model(nodes, [weights(rng, "w", 64, 4)], 17)
    with pytest.raises(InputError, match="too_much") as caught:
        calibrate(made, _samples(images(4) * 1000), signature(made))
    assert caught.value.code == "calibration_not_finite"


def test_a_wild_sample_is_named() -> None:
    array = images(30)
    array[17] *= 40
    made = conv_net()
    found = calibrate(made, _samples(array), signature(made), batch=7).outliers
    assert [(one.input, one.sample) for one in found] == [("image", 17)]
    assert found[0].times_median > 20
    assert calibrate(made, _samples(images(30)), signature(made)).outliers == ()


def test_an_all_zero_set_has_no_outliers() -> None:
    assert outliers({"image": [0.0, 0.0, 1.0]}) == ()


def test_raw_samples_are_calibrated_as_tensors(tmp_path: Path) -> None:
    """What is quantized is what the model sees, not what is stored."""
    raw = np.random.default_rng(1).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", image=raw)
    (tmp_path / "dataset.yaml").write_text(
        "inputs: {image: {stored: raw, preprocessing: [{op: scale, factor: 0.5}]}}"
    )
    made = conv_net()
    description = read_description(tmp_path / "dataset.yaml")
    samples = read_samples(tmp_path / "c.npz", description, signature(made), labelled=False)
    span = calibrate(made, samples, signature(made)).ranges["image"]
    assert (span.low, span.high) == (raw.min() / 2, raw.max() / 2)
