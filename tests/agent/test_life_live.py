"""Live figures on the agent's side: hostile files, the arithmetic, the fold through time, the whole way."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import live
from agent.adapters import live_files
from agent.adapters.live_files import LiveFiles
from agent.errors import FinalError
from agent.live import Counts, latency_quantile_ms, parse
from shallop_client import Live, Release
from shallop_client import histogram as theirs

DIGITS = ["digits"]
GOOD: dict[str, Any] = {
    "kind": "shallop-live", "version": 1, "model": "digits", "pid": 7, "epoch": 1, "release": None,
    "latency": [[72, 3]], "confidence": [[97, 2]], "refused": 0,
}  # fmt: skip


# --- the file ---------------------------------------------------------------------------------------


def test_both_sides_count_into_the_same_buckets() -> None:
    ours = (live.SUB_BUCKETS, live.EXPONENT_MIN, live.EXPONENT_MAX, live.CONFIDENCE_BUCKETS)
    assert ours == (
        theirs.SUB_BUCKETS, theirs.EXPONENT_MIN, theirs.EXPONENT_MAX, theirs.CONFIDENCE_BUCKETS
    )  # fmt: skip
    for bucket in range(live.LATENCY_BUCKETS):
        assert theirs.latency_bucket(live.latency_edge_ms(bucket)) == bucket


def test_what_the_client_writes_is_read(tmp_path: Path) -> None:
    counter = Live("digits", tmp_path)
    counter.use(Release(directory=Path("/x/abc-y"), info={}))
    counter.record(latency_ms=5.2, confidence=0.975)
    counter.flush()
    (found,) = LiveFiles(tmp_path).read(DIGITS)["digits"].values()
    assert (found.release, found.counts().n, found.pid) == ("abc-y", 1, os.getpid())
    assert found.counts().confidence_mean() == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "other"}, "live_malformed"),
        ({"version": 2}, "live_version"),
        ({"version": "1"}, "live_malformed"),
        ({"model": "faces"}, "live_wrong_model"),
        ({"model": "../x"}, "live_malformed"),
        ({"latency": [[live.LATENCY_BUCKETS, 1]]}, "live_malformed"),
        ({"latency": [[-1, 1]]}, "live_malformed"),
        ({"latency": [[1, 0]]}, "live_malformed"),
        ({"latency": [[1, -5]]}, "live_malformed"),
        ({"latency": [[1, 2**53]]}, "live_malformed"),
        ({"latency": [[1, 1.5]]}, "live_malformed"),
        ({"latency": [[1, 1], [1, 1]]}, "live_malformed"),
        ({"latency": [[n % 190, 1] for n in range(200)]}, "live_malformed"),
        ({"confidence": [[100, 1]]}, "live_malformed"),
        ({"confidence": None}, "live_malformed"),
        ({"release": "x" * 301}, "live_malformed"),
        ({"epoch": -1}, "live_malformed"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(change: dict[str, Any], code: str) -> None:
    with pytest.raises(FinalError) as refused:
        parse(json.dumps({**GOOD, **change}).encode(), "digits")
    assert refused.value.code == code
    assert parse(json.dumps({**GOOD, "new": 1}).encode(), "digits").counts().n == 3


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(FinalError, match="live figures"):
        parse(data, "digits")


def put(folder: Path, name: str = "digits@7-0.json", **change: object) -> Path:
    path = folder / name
    path.write_text(json.dumps({**GOOD, **change}))
    return path


def test_hostile_entries_are_refused_by_name_and_hold_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)
    os.mkfifo(tmp_path / "digits@1-0.json")
    (tmp_path / "digits@2-0.json").symlink_to("/etc/passwd")
    (tmp_path / "digits@3-0.json").mkdir()
    (tmp_path / "digits@4-0.json").write_bytes(b"[" * 100_000)
    (tmp_path / "digits@5-0.json").write_bytes(b"[" * 30_000)
    (tmp_path / "digits@6-0.json").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listener.bind("digits@8-0.json")
    put(tmp_path, "faces@7-0.json", model="faces")
    put(tmp_path, ".digits@7-0.json.tmp")
    put(tmp_path, "digits@7-0.txt")
    put(tmp_path, "digits.json")
    files = LiveFiles(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert {model: set(found) for model, found in files.read(DIGITS).items()} == {
                "digits": {"digits@7-0.json"}
            }
    for code, number in (("live_not_a_file", 5), ("live_oversized", 1), ("live_malformed", 1)):
        told = [record for record in caplog.records if code in record.getMessage()]
        assert len(told) == number, f"{code} was said {len(told)} times in three looks"


def test_only_the_newest_files_of_a_model_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(live_files.FILES_MAX + 5):
        os.utime(put(tmp_path, f"digits@{number}-0.json"), (number, number))
    found = LiveFiles(tmp_path).read(DIGITS)["digits"]
    assert len(found) == live_files.FILES_MAX
    assert "digits@0-0.json" not in found
    assert "live_crowded" in caplog.text


def test_a_directory_without_end_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_files, "ENTRIES_MAX", 10)
    for number in range(30):
        put(tmp_path, f"digits@{number}-0.json")
    assert len(LiveFiles(tmp_path).read(DIGITS)["digits"]) == 10
    assert "live_crowded" in caplog.text


def test_the_memory_of_refusals_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_files, "REFUSALS_MAX", 3)
    files = LiveFiles(tmp_path)
    for number in range(9):
        put(tmp_path, f"digits@{number}-0.json", version=9)
    files.read(DIGITS)
    assert len(files._refused) == 3


def test_no_directory_no_figures(tmp_path: Path) -> None:
    files = LiveFiles(tmp_path / "none")
    assert not files.there
    assert files.read(DIGITS) == {}


# --- the arithmetic ---------------------------------------------------------------------------------


def counted(latencies: list[float] = [], confidences: list[float] = []) -> Counts:  # noqa: B006
    counts = theirs.Counts()
    for value in latencies:
        counts.add(value, float("nan"))
    for value in confidences:
        counts.add(float("nan"), value)
    told = counts.as_json()
    return parse(json.dumps({**GOOD, **told}).encode(), "digits").counts()


@given(st.lists(st.floats(min_value=0.01, max_value=100_000), min_size=1, max_size=200))
def test_a_quantile_is_as_near_as_a_bucket(values: list[float]) -> None:
    for share in (0.5, 0.95):
        exact = sorted(values)[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]
        estimate = latency_quantile_ms(counted(values), share)
        assert estimate is not None
        assert exact / 1.13 <= estimate <= exact * 1.13


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=100))
def test_the_mean_confidence_is_as_near_as_half_a_bucket(values: list[float]) -> None:
    mean = counted(confidences=values).confidence_mean()
    assert mean is not None
    assert abs(mean - sum(values) / len(values)) <= 0.00501


def test_nothing_is_unknown_and_not_zero() -> None:
    assert latency_quantile_ms(Counts(), 0.95) is None
    assert Counts().confidence_mean() is None
    assert live.latency_ratio(Counts(), counted([1.0])) is None


pairs = st.dictionaries(st.integers(0, 99), st.integers(1, 1000), max_size=20)


@given(pairs, pairs)
def test_counts_add_up(one: dict[int, int], other: dict[int, int]) -> None:
    a, b = Counts(latency=one, confidence=one), Counts(latency=other, confidence=other)
    both = a.plus(b)
    assert both.n == a.n + b.n
    assert both.since(a) == b
    assert a.since(a) == Counts()
    if other:
        assert a.since(both) is None


@given(pairs)
def test_groups_cover_every_confidence_once(reference: dict[int, int]) -> None:
    ends = live.groups_of(reference)
    assert ends == sorted(set(ends))
    assert ends[-1] == live.CONFIDENCE_BUCKETS


def test_a_crowd_at_one_is_a_group_of_its_own() -> None:
    assert live.groups_of({99: 1000}) == [99, 100]
    assert live.groups_of({50: 500, 99: 500}) == [50, 51, 99, 100]
    assert live.groups_of(dict.fromkeys(range(100), 10)) == list(range(10, 101, 10))


@given(pairs, pairs)
def test_the_index_is_never_negative(one: dict[int, int], other: dict[int, int]) -> None:
    index, groups = live.stability_index(one, other)
    assert index >= -1e-12
    assert groups == len(live.groups_of(other))
    assert live.stability_index(other, other)[0] == pytest.approx(0.0)


def test_the_chi_square_point_is_the_tables() -> None:
    """99.9% points of chi-square from any table: 9 degrees 27.877, 4 degrees 18.467, 1 degree 10.828."""
    for freedom, point in ((9, 27.877), (4, 18.467), (1, 10.828)):
        assert live.index_limit(2, 2, freedom + 1, 0.0) == pytest.approx(point, rel=0.04)
    assert live.index_limit(10**6, 10**6, 10, 0.25) == 0.25


SHAPES: dict[str, Callable[[random.Random], float]] = {
    "sure": lambda chance: 1 - min(1.0, chance.expovariate(50)),
    "broad": lambda chance: chance.betavariate(5, 2),
    "two humps": lambda chance: chance.betavariate(*((9, 2) if chance.random() < 0.7 else (2, 5))),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_an_unchanged_confidence_seldom_drifts_and_a_changed_one_always(shape: str) -> None:
    chance, draw = random.Random(5), SHAPES[shape]

    def drifts(window: list[float], reference: list[float]) -> bool:
        now, then = counted(confidences=window).confidence, counted(confidences=reference).confidence
        index, groups = live.stability_index(now, then)
        return index > live.index_limit(len(window), len(reference), groups, 0.25)

    rounds, n = 150, 200
    false = sum(
        drifts([draw(chance) for _ in range(n)], [draw(chance) for _ in range(n)]) for _ in range(rounds)
    )
    assert false <= 2, f"{false} false alarms in {rounds}"
    lower = [[max(0.0, draw(chance) - 0.2) for _ in range(n)] for _ in range(20)]
    assert all(drifts(window, [draw(chance) for _ in range(n)]) for window in lower)
