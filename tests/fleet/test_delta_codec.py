"""Whatever a delta is made of, the device gets the new file to the byte; and what is saved is saved."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.deltas.elements import packed, tokens_of
from fleet.deltas.encoder import encode
from fleet.deltas.glue import Matcher
from fleet.deltas.plan import pairs
from fleet.deltas.tensors import Tensor, tensors_of
from fleet.deltas.tokens import code, lanes_for
from tests.fleet.delta_samples import EXAMPLES, Weights, applied, onnx_of, round_trip
from wire import delta_format as df
from wire.chunks import Span


@pytest.mark.parametrize("by", [0.0, 1e-4, 3e-3, 0.02])
def test_every_kind_of_element_comes_back(tmp_path: Path, by: float) -> None:
    old = Weights()
    new = old.moved(by, seed=3)
    new.input_scale = 0.021
    delta, found = round_trip(tmp_path, old.onnx(), new.onnx())
    assert delta is not None
    assert found == new.onnx()


def test_integers_that_follow_their_scales_cost_little(tmp_path: Path) -> None:
    """Re-calibrated: the input's scale moves all biases and their scales, by a factor that is sent once."""
    old, new = Weights(channels=2000, inputs=1), Weights(channels=2000, inputs=1)
    new.input_scale = 0.0213
    base, target = onnx_of(_biases(old)), onnx_of(_biases(new))
    delta, found = round_trip(tmp_path, base, target)
    assert delta is not None
    assert found == target
    assert len(delta) < 0.16 * len(_biases(new)["bias"].tobytes() + _biases(new)["bias_scales"].tobytes())
    assert _xz_of_difference(base, target) > 3 * len(delta)


@pytest.mark.parametrize("unsigned", [False, True])
def test_weights_of_channels_that_were_scaled_anew(tmp_path: Path, unsigned: bool) -> None:
    """One weight of each channel grows: all its integers change, and hardly one that was not foreseen."""
    old, new = Weights(channels=400), Weights(channels=400)
    new.real[:, 0, 0, 0] = np.abs(old.real).max(axis=(1, 2, 3)) * 1.3
    chosen = ("scales", "weights")
    held = [{name: one.arrays()[name] for name in chosen} for one in (old, new)]
    if unsigned:
        for arrays in held:
            arrays["weights"] = (arrays["weights"].astype(np.int16) + 128).astype(np.uint8)
    base, target = map(onnx_of, held)
    delta, found = round_trip(tmp_path, base, target)
    assert delta is not None
    assert found == target
    assert len(delta) < 0.5 * _xz_of_difference(base, target)


def test_a_scale_that_follows_one_which_itself_follows_another(tmp_path: Path) -> None:
    """The third is a multiple of the second, which is nearly one of the first: what is read must be there."""
    random = np.random.default_rng(4)
    first = random.uniform(0.01, 0.1, (2, 3000)).astype(np.float32)
    second = (first * 0.02 * (1 + random.normal(0, 3e-6, (2, 3000)))).astype(np.float32)
    third = (second * np.float32(8.0)).astype(np.float32)
    base, target = (onnx_of({"a": first[i], "b": second[i], "c": third[i]}) for i in range(2))
    delta, found = round_trip(tmp_path, base, target)
    assert delta is not None
    assert found == target


def test_fine_tuned_weights_beat_a_byte_wise_difference(tmp_path: Path) -> None:
    old = Weights(channels=128)
    new = old.moved(1e-3)
    delta, found = round_trip(tmp_path, old.onnx(), new.onnx())
    assert delta is not None
    assert found == new.onnx()
    assert len(delta) < 0.9 * _xz_of_difference(old.onnx(), new.onnx())


def test_the_demo_s_models(tmp_path: Path) -> None:
    base, new = ((EXAMPLES / f"fashion_v{n}.onnx").read_bytes() for n in (1, 2))
    delta, found = round_trip(tmp_path, base, new)
    assert delta is not None
    assert found == new
    assert len(delta) < 0.92 * len(lzma.compress(new))


def test_the_same_file_is_next_to_nothing(tmp_path: Path) -> None:
    content = Weights().onnx()
    delta, found = round_trip(tmp_path, content, content)
    assert found == content
    assert len(delta or b"") < 400


def test_what_does_not_pay_is_none() -> None:
    random = np.random.default_rng(1)
    assert encode(random.bytes(5000), random.bytes(5000)) is None
    assert encode(b"abc", b"") is None


def test_a_renamed_moved_or_missing_tensor(tmp_path: Path) -> None:
    arrays = Weights().arrays()
    other = {f"model/{name}": value for name, value in reversed(arrays.items()) if name != "float16"}
    other["added"] = np.arange(5000, dtype=np.int32)
    base, new = onnx_of(arrays), onnx_of(other)
    delta, found = round_trip(tmp_path, base, new)
    assert found == new
    assert len(delta or new) < len(new) // 8


def test_floats_that_are_no_numbers(tmp_path: Path) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38] * 40, dtype=np.float32)
    half = (np.arange(80) * 817).astype(np.uint16).view(np.float16)
    bits = odd.view(np.uint32).copy()
    bits[::8] = 0x7F800001  # a signalling NaN
    arrays: dict[str, NDArray[Any]] = {"scales": odd[:40], "values": bits.view(np.float32), "half": half}
    other: dict[str, NDArray[Any]] = {name: np.roll(value, 3) for name, value in arrays.items()}
    other["values"][::3] = arrays["values"][::3]
    base, new = onnx_of(arrays), onnx_of(other)
    _, found = round_trip(tmp_path, base, new)
    assert found == new


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Edits of runs of random bytes: what is moved, overwritten, cut out or repeated is found again."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    base = np.random.default_rng(seed).bytes(data.draw(st.integers(0, 6000)))
    new = b""
    for _ in range(data.draw(st.integers(1, 6))):
        first = data.draw(st.integers(0, len(base)))
        new += base[first : data.draw(st.integers(first, len(base)))] + data.draw(st.binary(max_size=40))
    _, found = round_trip(tmp_path_factory.mktemp("bytes"), base, new)
    assert found == new


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([df.BYTES, df.INT16, df.INT32, df.FLOAT16, df.FLOAT32]),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([24, 49, 1000, 2049, 20_000]),
    spread=st.sampled_from([0.0, 0.6, 30.0, 1e9]),
)
def test_any_elements(
    tmp_path_factory: pytest.TempPathFactory, kind: int, seed: int, size: int, spread: float
) -> None:
    """Bits of every element moved by a little, by much, or to anywhere."""
    random = np.random.default_rng(seed)
    form = {df.BYTES: "i1", df.INT16: "<i2", df.INT32: "<i4", df.FLOAT16: "<i2", df.FLOAT32: "<i4"}[kind]
    old = random.integers(-(2**31), 2**31, size).astype(form)
    new = (old.astype(np.int64) + np.rint(random.normal(0, spread, size)).astype(np.int64)).astype(form)
    seen = {df.FLOAT16: "<f2", df.FLOAT32: "<f4"}.get(kind, form)
    base, target = (onnx_of({"w": one.view(seen)}) for one in (old, new))
    _, found = round_trip(tmp_path_factory.mktemp("elements"), base, target)
    assert found == target


def test_blocks_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors over several blocks, and blocks over several tensors."""
    monkeypatch.setattr(df, "BLOCK_ELEMENTS", 1000)
    old = Weights()
    new = old.moved(2e-3)
    delta, found = round_trip(tmp_path, old.onnx(), new.onnx())
    assert delta is not None
    assert found == new.onnx()


def test_a_stream_with_more_lanes_than_the_last_block_has_elements(tmp_path: Path) -> None:
    old = np.random.default_rng(1).integers(-128, 128, df.BLOCK_ELEMENTS + 7).astype(np.int8)
    new = old + np.random.default_rng(2).integers(-3, 4, len(old)).astype(np.int8)
    base, target = onnx_of({"w": old}), onnx_of({"w": new})
    delta, found = round_trip(tmp_path, base, target)
    assert found == target
    assert len(delta or target) < 0.45 * len(old)


def test_the_least_number_of_four_bytes() -> None:
    values = np.array([-(2**31), 2**31 - 1, -1, 0, 1, 2, 3, 4, -7, 8], dtype=np.int64)
    tokens, low, lengths = tokens_of(df.INT32, values)
    assert tokens[0] == 1
    assert lengths.tolist() == [0, 28, 0, 0, 0, 0, 0, 0, 0, 1]
    assert len(packed(low, lengths)) == 4


@pytest.mark.parametrize(
    ("elements", "bits", "lanes"),
    [(1, 8.0, 1), (5_000_000, 9e6, 1024), (1_200_000, 100.0, 146), (148_368, 1e6, 144), (20_000, 8192.0, 4)],
)
def test_lanes_cost_little_and_are_enough(elements: int, bits: float, lanes: int) -> None:
    assert lanes_for(elements, bits) == lanes
    assert elements <= lanes * df.STEPS_MAX or lanes == df.LANES_MAX


def test_the_coder_nears_the_entropy() -> None:
    """Of a source without memory, within 2%: tables, lanes and all."""
    random = np.random.default_rng(5)
    tokens = np.rint(random.laplace(0, 3, 300_000)).astype(np.int64)
    counts = np.unique(tokens, return_counts=True)[1] / len(tokens)
    entropy_bytes = -float((counts * np.log2(counts)).sum()) * len(tokens) / 8
    coded = code(df.BYTES, (tokens & 255).astype(np.uint8), np.zeros(len(tokens), dtype=np.int64), 64)
    assert entropy_bytes < len(coded) < 1.02 * entropy_bytes


def test_pairs_by_name_then_by_shape_and_order() -> None:
    def tensor(name: str, at: int, kind: int = df.BYTES) -> Tensor:
        return Tensor(name, kind, (64,), Span(at, 64 * df.WIDTHS[kind]))

    old = [tensor("a", 0), tensor("b", 64), tensor("c", 128), tensor("f", 192, df.FLOAT32)]
    new = [tensor("x", 0), tensor("b", 64), tensor("y", 128), tensor("z", 192), tensor("f", 256)]
    found = {one.new.name: one.old.name if one.old else None for one in pairs(old, new)}
    assert found == {"x": "a", "b": "b", "y": "c", "z": None, "f": None}


def test_tensors_that_overlap_are_left_out() -> None:
    assert tensors_of(b"") == ()
    assert tensors_of(b"\x00\x01 no model at all") == ()
    names = [one.name for one in tensors_of(Weights().onnx())]
    assert names == [name for name in Weights().arrays() if name != "shape"]


def test_a_match_is_grown_both_ways_and_over_changed_bytes() -> None:
    base = np.random.default_rng(9).integers(0, 256, 2000).astype(np.uint8)
    new = np.concatenate([base[500:600], base[1000:1800]])
    new[130:700:9] += 1
    (first, second) = Matcher(base).matches(new, 0, len(new), 0, 10)
    assert (first.new_at, first.base_at) == (0, 500)
    assert (second.new_at, second.base_at, second.size) == (100, 1000, 800)


def test_a_base_changed_within_is_noticed_by_the_hash_only(tmp_path: Path) -> None:
    """The delta itself cannot tell; whoever ordered it hashes the result."""
    old, new = Weights().onnx(), Weights().moved(1e-3).onnx()
    delta = encode(old, new)
    assert delta is not None
    other = bytearray(old)
    other[len(old) // 2] ^= 1
    assert applied(tmp_path, bytes(other), delta, len(new)) != new


def _biases(weights: Weights) -> dict[str, NDArray[Any]]:
    arrays = weights.arrays()
    return {name: arrays[name] for name in ("scales", "weights", "bias_scales", "bias")}


def _xz_of_difference(base: bytes, new: bytes) -> int:
    """What the plain way costs: bytes' differences where the files are of one size, in one xz."""
    assert len(base) == len(new)
    difference = np.frombuffer(new, dtype=np.uint8) - np.frombuffer(base, dtype=np.uint8)
    return len(lzma.compress(difference.tobytes(), preset=9 | lzma.PRESET_EXTREME))
