"""Streaming ranges equal the ranges of all activations held at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter.calibrate import calibrate, outliers
from converter.calibrate.probes import activation_bytes, augmented
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


def test_a_run_hands_out_small_arrays() -> None:
    """This is what bounds the memory: at most 2,048 values and three numbers a channel, of each sample."""
    nodes = [
        helper.make_node("Resize", ["image", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["large"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 16, 16], dtype=np.float32), "scales")
    graph, probes = augmented(model(nodes, [scales, weights(np.random.default_rng(0), "w", 1, 4)], 17))
    session = open_session(graph.SerializeToString(), optimization="BASIC")
    found = session.run(None, {"image": images(30)})
    assert [one.tensor for one in probes] == ["image", "large", "g", "f", "logits"]
    assert len(found) == 4 * len(probes)
    low, high, mean, values = found[4:8]
    assert low.shape == high.shape == mean.shape == (30, 1)
    assert 1000 < values.shape[1] <= 2048


def test_statistics_are_those_of_all_values() -> None:
    made, array = conv_net(), images(37)
    found = calibrate(made, _samples(array), signature(made), batch=5).tensors
    names = ["c1", "f"]
    plain = onnx.ModelProto()
    plain.CopyFrom(made)
    plain.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = open_session(plain.SerializeToString(), optimization="DISABLE_ALL")
    for name, values in zip(names, session.run(names, {"image": array}), strict=True):
        one = found[name]
        flat, by_channel = values.reshape(37, -1), tuple(i for i in range(values.ndim) if i != 1)
        assert one.mean == pytest.approx(values.mean(), abs=1e-5)
        assert one.std == pytest.approx(values.std(), rel=1e-4)
        assert one.count == one.histogram.total == values.size
        assert one.average.low == pytest.approx(flat.min(axis=1).mean(), abs=1e-5)
        assert one.average.high == pytest.approx(flat.max(axis=1).mean(), abs=1e-5)
        assert one.sample_high is not None
        assert one.channels is not None
        assert one.sample_high == pytest.approx(flat.max(axis=1), abs=1e-5)
        assert one.channels.axis == 1
        assert one.channels.low == pytest.approx(values.min(axis=by_channel), abs=1e-5)
        assert one.channels.high == pytest.approx(values.max(axis=by_channel), abs=1e-5)
        assert one.channels.mean == pytest.approx(values.mean(axis=by_channel), abs=1e-5)


def test_what_feeds_a_matmul_is_followed_on_its_last_axis() -> None:
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["logits"], axes=[1], keepdims=0),
    ]
    shape = numpy_helper.from_array(np.array([0, 8, 8], dtype=np.int64), "shape")
    made = model(nodes, [shape, weights(np.random.default_rng(0), "w", 8, 4)], 17)
    array = images(12)
    channels = calibrate(made, _samples(array), signature(made)).tensors["rows"].channels
    assert channels is not None
    assert channels.axis == 2
    assert channels.high == pytest.approx(array.reshape(12, 8, 8).max(axis=(0, 1)))


def test_samples_are_not_told_apart_where_the_first_axis_does_not_count_them() -> None:
    nodes = [
        helper.make_node("Transpose", ["image"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0, 2, 3]),
        helper.make_node("Flatten", ["back"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    made = model(nodes, [weights(np.random.default_rng(0), "w", 64, 4)], 17)
    array = images(20)
    found = calibrate(made, _samples(array), signature(made), batch=8).tensors
    assert found["turned"].sample_low is None
    assert found["turned"].extremes.high == array.max()
    assert found["turned"].histogram.total == array.size
    assert found["back"].sample_low is not None


def test_a_large_model_runs_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = conv_net()
    monkeypatch.setattr("converter.calibrate.collect.ACTIVATION_BYTES_MAX", 3 * activation_bytes(made))
    told: list[int] = []
    calibrate(made, _samples(images(7)), signature(made), lambda done, _: told.append(done))
    assert told == [3, 6, 7]
    # image and c1 to r2 are [8, 8] planes, 1 and 8 of them; g and f are 8 numbers, logits 4
    assert activation_bytes(made) == 4 * (64 + 4 * 8 * 64 + 8 + 8 + 4)


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
    assert "sample 0" in str(caught.value)


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
