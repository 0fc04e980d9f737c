"""A delta may be anyone's: whatever its bytes are, it ends in a named error or in exactly so many bytes."""

from __future__ import annotations

import json
import lzma
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.worker.delta import apply
from fleet.deltas.encoder import encode
from tests.fleet.delta_samples import Weights
from wire import delta_format as df
from wire.errors import ContentError

_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": df.DICTIONARY_BYTES}]
NAMES = {"delta_invalid", "delta_truncated", "delta_wrong_base", "delta_wrong_size"}
COPIES = df.Head(1000, 1000, 0, (df.Operation(df.COPY, 1000),), ())


@pytest.fixture(scope="module", name="files")
def _files() -> tuple[bytes, bytes, bytes]:
    """Base, new file and delta; small, and with every kind of stream."""
    old = Weights(channels=12, inputs=8)
    base, new = old.onnx(), old.moved(2e-3).onnx()
    delta = encode(base, new)
    assert delta is not None
    return base, new, delta


class Bench:
    """Applies deltas to one base."""

    def __init__(self, folder: Path, base: bytes) -> None:
        self.base, self.delta, self.new = folder / "base", folder / "delta", folder / "new"
        self.base.write_bytes(base)

    def outcome(self, delta: bytes, size_bytes: int) -> str:
        """The error's code, or `written`; never another exception, never another size."""
        self.delta.write_bytes(delta)
        self.new.unlink(missing_ok=True)
        try:
            apply(self.base, self.delta, self.new, size_bytes)
        except ContentError as error:
            code = error.code
        else:
            code = "written"
        assert code in NAMES | {"written"}
        assert self.new.exists() == (code == "written")
        if code != "written":
            return code
        assert self.new.stat().st_size == size_bytes
        return code


@pytest.fixture(name="bench")
def _bench(tmp_path: Path, files: tuple[bytes, bytes, bytes]) -> Bench:
    return Bench(tmp_path, files[0])


def of_head(head: df.Head, parts: bytes = b"", announced: int | None = None) -> bytes:
    """A delta of that head, well packed."""
    plain = msgspec.msgpack.encode(head)
    small = packed(plain)
    size = len(plain) if announced is None else announced
    return df.MAGIC + df.HEAD_SIZES.pack(len(small), size) + small + parts


def packed(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)


def test_the_honest_one(bench: Bench, files: tuple[bytes, bytes, bytes]) -> None:
    assert bench.outcome(files[2], len(files[1])) == "written"
    assert bench.new.read_bytes() == files[1]


def test_every_truncation_is_named(bench: Bench, files: tuple[bytes, bytes, bytes]) -> None:
    _, new, delta = files
    for size in {*range(60), *range(60, len(delta), 97), len(delta) - 1}:
        assert bench.outcome(delta[:size], len(new)) in {"delta_invalid", "delta_truncated"}
    assert bench.outcome(delta + b"x", len(new)) == "delta_invalid"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits(bench: Bench, files: tuple[bytes, bytes, bytes], data: st.DataObject) -> None:
    _, new, delta = files
    broken = bytearray(delta)
    early = st.integers(0, min(400, len(delta) - 1))
    for place in data.draw(st.lists(early | st.integers(0, len(delta) - 1), min_size=1, max_size=4)):
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    bench.outcome(bytes(broken), len(new))


operations = st.builds(
    df.Operation,
    st.integers(0, 3),
    st.integers(1, 700),
    st.integers(-900, 900),
    st.integers(0, 7),
    st.integers(0, 2),
    st.none()
    | st.builds(
        df.Scaling,
        st.floats(allow_nan=True),
        st.integers(0, 60),
        st.integers(1, 40),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.booleans(),
        st.integers(0, 255),
    ),
)
streams = st.builds(
    df.Stream,
    st.integers(0, 4),
    st.integers(1, 40),
    st.integers(1, 900),
    st.integers(0, 900),
    st.integers(0, 500),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_heads_that_a_stranger_made(
    bench: Bench, files: tuple[bytes, bytes, bytes], data: st.DataObject
) -> None:
    """Heads of the right types, sizes made to agree, whatever the rest says, with random parts."""
    listed = data.draw(st.lists(operations, min_size=1, max_size=6))
    kinds = data.draw(st.lists(streams, max_size=3))
    if data.draw(st.booleans()):  # so that most get beyond the first checks
        listed, kinds = _coherent(listed, kinds)
    total = sum(one.size_bytes for one in listed)
    glue = packed(data.draw(st.binary(max_size=300)))
    parts = np.random.default_rng(len(listed)).bytes(sum(one.token_bytes + one.raw_bytes for one in kinds))
    head = df.Head(len(files[0]), total, len(glue), tuple(listed), tuple(kinds))
    bench.outcome(of_head(head, glue + parts), total)


def _coherent(
    listed: list[df.Operation], kinds: list[df.Stream]
) -> tuple[list[df.Operation], list[df.Stream]]:
    change = msgspec.structs.replace
    kinds = kinds or [df.Stream(df.BYTES, 3, 1, 900, 400)]
    found, elements = [], [0] * len(kinds)
    for one in listed:
        number = one.stream % len(kinds)
        width = df.WIDTHS[kinds[number].kind]
        fixed = change(one, stream=number, skip=abs(one.skip), size_bytes=one.size_bytes * width)
        fixed = change(fixed, prediction=df.SCALED if one.scaling else one.prediction % 2)
        elements[number] += one.size_bytes if one.kind == df.CODED else 0
        found.append(fixed)
    return found, [change(one, elements=max(1, n)) for one, n in zip(kinds, elements, strict=True)]


def test_a_head_that_lies_about_sizes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bytes(1000))
    empty = packed(b"")
    good = msgspec.structs.replace(COPIES, glue_bytes=len(empty))
    assert bench.outcome(of_head(good, empty), 1000) == "written"
    assert bench.outcome(of_head(good, empty), 1001) == "delta_wrong_size"
    other = msgspec.structs.replace(good, base_bytes=999)
    assert bench.outcome(of_head(other, empty), 1000) == "delta_wrong_base"
    for skip in (1, -1, 2**31):
        beyond = msgspec.structs.replace(good, operations=(df.Operation(df.COPY, 1000, skip),))
        assert bench.outcome(of_head(beyond, empty), 1000) == "delta_invalid"
    short = msgspec.structs.replace(good, operations=(df.Operation(df.COPY, 999),))
    assert bench.outcome(of_head(short, empty), 1000) == "delta_invalid"


@pytest.mark.parametrize("token_bytes", range(9))
def test_a_stream_that_ends_within_a_lane_s_state(tmp_path: Path, token_bytes: int) -> None:
    """Two lanes have eight bytes of state; six of them once reached numpy."""
    bench, empty = Bench(tmp_path, bytes(1000)), packed(b"")
    head = df.Head(
        1000, 1000, len(empty), (df.Operation(df.CODED, 1000),),
        (df.Stream(df.BYTES, 2, 1000, token_bytes, 0),),
    )  # fmt: skip
    assert bench.outcome(of_head(head, empty + bytes(token_bytes)), 1000) == "delta_truncated"


def test_few_lanes_cannot_make_the_device_work_for_hours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, b"")
    size = df.STEPS_MAX + 1
    glue, one = packed(b""), df.Operation(df.CODED, size)
    head = df.Head(0, size, len(glue), (one,), (df.Stream(df.BYTES, 1, size, 4, 0),))
    assert bench.outcome(of_head(head, glue + bytes(4)), size) == "delta_invalid"


def test_a_bomb_in_the_head_or_the_glue(tmp_path: Path) -> None:
    """128 MiB of zeros in a few kilobytes: never unpacked beyond what is announced and wanted."""
    bench = Bench(tmp_path, b"")
    compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    bomb = b"".join(compressor.compress(bytes(2**24)) for _ in range(8)) + compressor.flush()
    announced = df.MAGIC + df.HEAD_SIZES.pack(len(bomb), 2**31) + bomb
    assert bench.outcome(announced, 10) == "delta_invalid"
    sly = df.MAGIC + df.HEAD_SIZES.pack(len(bomb), 64) + bomb
    assert bench.outcome(sly, 10) == "delta_invalid"
    head = df.Head(0, 10, len(bomb), (df.Operation(df.LITERAL, 10),), ())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert bench.outcome(of_head(head, bomb), 10) == "written"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_the_worker_process(tmp_path: Path, files: tuple[bytes, bytes, bytes]) -> None:
    """As the daemon starts it: an order in, an outcome out."""
    base, new, delta = files
    for name, content in (("base", base), ("delta", delta), ("broken", delta[:-3])):
        (tmp_path / name).write_bytes(content)
    for name, code in (("delta", None), ("broken", "delta_truncated")):
        order = {
            "base": str(tmp_path / "base"), "delta": str(tmp_path / name), "output": str(tmp_path / "new"),
            "size_bytes": len(new), "result_path": str(tmp_path / "result"),
            "limits": {"memory_bytes_max": 2**30, "cpu_s_max": 30, "file_bytes_max": 2**20},
        }  # fmt: skip
        (tmp_path / "order").write_text(json.dumps(order), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "agent.worker.delta", str(tmp_path / "order")], check=True, timeout=60
        )
        assert json.loads((tmp_path / "result").read_text(encoding="utf-8"))["code"] == code
    assert not (tmp_path / "new").exists()


def test_the_delta_s_entry_loads_no_numpy_before_the_limits() -> None:
    code = "import sys, agent.worker.delta; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "False"
