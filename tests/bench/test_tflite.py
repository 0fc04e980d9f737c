"""The pure parts of `bench.tflite` and of what it launches: no peer is installed for these."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench.converter.judging import turn_by_turn
from bench.launching import launch, reason
from bench.tflite.environments import installed_mb, is_installer
from bench.tflite.files import outline, placed
from bench.tflite.judging import sqnr_db, t_interval
from bench.tflite.synthetic import attention, unet_like
from bench.tflite.table import UNKNOWN, table
from converter.tflite import write


def test_a_program_is_launched_with_its_costs_and_words() -> None:
    ended = launch([sys.executable, "-c", "print('\\x1b[31mone\\x1b[0m\\n\\ntwo'); raise SystemExit(3)"])
    assert ended.code == 3
    assert ended.lines == ("one", "two")
    assert ended.seconds > 0
    assert ended.rss_mib_peak > 1


def test_what_a_program_holds_counts_and_what_this_process_holds_does_not() -> None:
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    small = launch([sys.executable, "-S", "-c", "pass"])
    large = launch([sys.executable, "-S", "-c", "x = b'x' * (100 << 20)"])
    assert small.rss_mib_peak < 60
    assert 100 <= large.rss_mib_peak < 200


def test_a_program_that_takes_too_long_is_killed_with_its_children() -> None:
    forks = "import os, time; print(os.getpid(), flush=True) if os.fork() == 0 else None; time.sleep(60)"
    ended = launch([sys.executable, "-c", forks], seconds_max=1)
    assert ended.code == -9
    assert ended.seconds < 30
    assert reason(ended.lines) == "LimitError: not done after 1 s"
    child = Path(f"/proc/{ended.lines[0]}/status")
    assert not child.exists() or "zombie" in child.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("Traceback (most recent call last):", '  File "x"', "ValueError: bad", " • x"), "ValueError: bad"),
        (("ValueError: first", "during that", "a.b.TFLiteError: last"), "a.b.TFLiteError: last"),
        (('ValueError: Exception encountered when calling layer "x".', "Depth of input"),
         'ValueError: Exception encountered when calling layer "x". Depth of input'),
        (("one", " two "), "two"),
        ((), "it said nothing"),
        (("SystemExit",), "SystemExit"),
        (("ValueError: the one", "a line of KeyError: no more", "x"), "ValueError: the one"),
    ],
)  # fmt: skip
def test_the_line_that_says_why(lines: tuple[str, ...], said: str) -> None:
    assert reason(lines) == said


def test_turns_are_paired_and_every_run_has_as_many() -> None:
    calls: list[str] = []
    rows = turn_by_turn(
        {"a": lambda i: calls.append(f"a{i}"), "b": lambda i: calls.append(f"b{i}")}, "a", rounds_max=40
    )
    rounds = calls[20:]
    assert [sorted(pair) for pair in zip(rounds[::2], rounds[1::2], strict=True)] == [
        [f"a{i}", f"b{i}"] for i in range(40)
    ]
    assert {pair[0][0] for pair in zip(rounds[::2], rounds[1::2], strict=True)} == {"a", "b"}
    assert rows["a"]["latency_ratio"] == 1.0


def test_turns_end_early_but_not_before_thirty() -> None:
    calls: list[int] = []
    turn_by_turn({"a": calls.append}, "a", rounds_max=1_000, seconds_max=0.0)
    assert len(calls) == 10 + 30


def test_edges_are_found_by_name_then_by_shape_with_the_channels_last() -> None:
    offered = {"h": (1, 8), "serving_0": (1, 5, 6, 3), "state": (1, 8)}
    found = placed({"image": (1, 3, 5, 6), "c": (1, 8), "h": (1, 8)}, offered)
    assert found == {
        "image": ("serving_0", (0, 2, 3, 1)),
        "h": ("h", (0, 1)),
        "c": ("state", (0, 1)),
    }


def test_an_edge_that_fits_as_it_is_stays() -> None:
    assert placed({"x": (1, 4, 4, 4)}, {"y": (1, 4, 4, 4)}) == {"x": ("y", (0, 1, 2, 3))}
    assert placed({"x": (1, 4, 9)}, {"y": (1, 9, 4)}) == {"x": ("y", (0, 2, 1))}


@pytest.mark.parametrize("offered", [{}, {"y": (1, 4)}, {"x": (2, 3)}, {"y": (3, 2)}])
def test_an_edge_that_is_not_there_is_named(offered: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"x \[2, 3, 4\] is none of the file's"):
        placed({"x": (2, 3, 4)}, offered)


def test_no_edge_of_the_file_is_given_twice() -> None:
    with pytest.raises(ValueError, match="b"):
        placed({"a": (1, 2), "b": (1, 2)}, {"one": (1, 2)})


def test_an_outline_counts_what_is_in_a_file() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        helper.make_node("Transpose", ["y"], ["z"], name="turn", perm=[0, 3, 1, 2]),
    ]
    edges = [("x", [1, 3, 5, 6]), ("z", [1, 6, 4, 5])]
    given_, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in edges)
    graph = helper.make_graph(nodes, "g", [given_], [made], [weight])
    content = write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).content
    found = outline(content)
    assert found.size_bytes == len(content)
    assert found.operators["CONV_2D"] == 1
    assert found.figures()["transposes"] == found.operators.get("TRANSPOSE", 0)
    assert found.figures()["float_operators"] == sum(found.operators.values())
    assert found.inputs == {"x": (1, 5, 6, 3)}
    assert set(found.outputs) == {"z"}


@pytest.mark.parametrize("make", [unet_like, attention])
def test_the_synthetic_models_are_the_same_each_time(make: object) -> None:
    assert callable(make)
    assert make().SerializeToString() == make().SerializeToString()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40).filter(lambda found: np.std(found) > 1e-6))
def test_noise_is_that_of_numpy(wanted: list[float]) -> None:
    array = np.array(wanted)
    noise = np.full_like(array, 0.1)
    expected = 10 * np.log10((array**2).mean() / (noise**2).mean())
    assert sqnr_db(array, array + noise) == pytest.approx(expected, abs=0.06)
    assert sqnr_db(array, array) is None


def test_the_interval_of_openings() -> None:
    same = t_interval([1.0, 1.0, 1.0])
    assert (same.low, same.high) == (1.0, 1.0)
    # Student's t with three degrees of freedom: 3.182; standard error of 1, 2, 3, 4 is 0.6455.
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    assert found.high - 2.5 == pytest.approx(3.182 * 0.6455, rel=0.02)
    assert 2.5 - found.low == pytest.approx(found.high - 2.5)


def test_a_tables_cells() -> None:
    row = {
        "accuracy": 0.91, "accuracy_ci95": [0.9, 0.92], "size_bytes": 100944, "operators": 17,
        "sqnr_db": 31.5, "transposes": 0, "quantizes": 1, "dequantizes": 0, "note": "a|b",
    }  # fmt: skip
    head, rule, line = table({"m": {"t": row}}).splitlines()
    assert line.startswith(
        f"| m | t | 0.91 [0.9, 0.92] | {UNKNOWN} | {UNKNOWN} | 31.5 | 100,944 | 17 | 0 | 1 / 0 |"
    )
    assert line.endswith("| a/b |")
    assert "1 / 0" not in table({"m": {"t": row | {"quantizes": None}}})
    assert head.count("|") == rule.count("|") == line.count("|")


def test_an_environments_weight_is_that_of_its_packages(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.99" / "site-packages"
    for name in ("pip", "tool/deep", "tool-1.0.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "file").write_bytes(b"x" * 100_000)
    (packages / "single.py").write_bytes(b"x" * 100_000)
    (packages / "tool" / "link").symlink_to(packages / "pip" / "file")
    # Files take whole blocks of the file system.
    assert installed_mb(tmp_path) == pytest.approx(0.3, abs=0.11)


@pytest.mark.parametrize(
    ("entry", "skipped"),
    [("pip", True), ("pip-24.0.dist-info", True), ("setuptools-65.5.0.dist-info", True), ("pipx", False),
     ("tensorflow", False), ("distutils-precedence.pth", True), ("numpy-2.0.dist-info", False)],
)  # fmt: skip
def test_installers_do_not_count(entry: str, skipped: bool) -> None:
    assert is_installer(entry) is skipped
