"""Deltas are detours that cost nothing when they fail: every way to fail ends in the same bytes."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.admission import BLOCK_BYTES, JOURNAL_MARGIN_BYTES, Shortcut, room_needed
from agent.errors import FinalError, RetryError
from agent.rebuilding import STARTS_MAX
from agent.shortcuts import DELTA_BYTES_OVER_MAX, cheapest, cost, index_of
from agent.slots import file_sha256
from tests.agent.crashing import PowerCut, crash_at
from tests.agent.deltas import NEW, NOISE, OLD, Delta, model
from tests.agent.rig import DEVICE, Rig, running
from tests.agent.twins import TOPICS, MemoryBroker, release, until
from wire.bundle import Chunk, File
from wire.chunks import digest
from wire.deltas import DeltaHint
from wire.errors import ContentError
from wire.messages import ContentFetched, OrderOutcome
from wire.topics import BLOB


def install_old(rig: Rig) -> None:
    rig.broker.hold(OLD)
    rig.broker.desire(DEVICE, {"digits": OLD.order(1)})
    rig.wait(1, OrderOutcome.ACTIVE)
    rig.broker.fetched.clear()


def update(rig: Rig, delta: Delta, order: int = 2) -> ContentFetched:
    """The new release with a hint goes through to active; what fetching it took."""
    rig.broker.hold(NEW)
    rig.broker.desire(DEVICE, {"digits": NEW.order(order, deltas=(delta.hint,))})
    rig.wait(order, OrderOutcome.ACTIVE)
    assert file_sha256(rig.current / "model.onnx") == model(NEW).sha256
    told = [r.event for r in rig.reports() if r.order == order and isinstance(r.event, ContentFetched)]
    assert len(told) == 1
    return told[0]


def chunks_fetched(rig: Rig) -> set[str]:
    return set(rig.broker.fetched) & {chunk.sha256 for chunk in model(NEW).chunks}


def test_a_file_comes_by_its_delta_and_none_of_its_chunks_is_fetched(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        told = update(rig, delta)
        (use,) = told.deltas
        assert use.failure is None
        assert (use.from_file_sha256, use.to_file_sha256) == (model(OLD).sha256, model(NEW).sha256)
        assert chunks_fetched(rig) == set()
        assert set(rig.broker.fetched) >= {*delta.blobs, delta.hint.index}
        sent = sum(len(rig.broker.retained[TOPICS.topic(BLOB, digest=n)]) for n in rig.broker.fetched)
        assert told.bytes_received == sent
        until(lambda: not any((tmp_path / "blobs").iterdir()), "the store to be tidied")


def test_the_slot_shares_the_built_file_and_outlives_it(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        rig.trials.hangs = True
        rig.broker.hold(NEW)
        rig.broker.desire(DEVICE, {"digits": NEW.order(2, deltas=(delta.hint,))})
        until(lambda: len(rig.trials.jobs) == 2, "the trial")
        placed = Path(rig.trials.jobs[-1].candidate.model_path)
        built = tmp_path / "blobs" / "built" / model(NEW).sha256
        assert placed.samefile(built), "a copy would cost the card another write of the model"
        rig.trials.hangs = False
        rig.wait(2, OrderOutcome.ACTIVE)
        until(lambda: not built.exists(), "the store to be tidied")
        assert file_sha256(placed) == model(NEW).sha256


def _change_base(rig: Rig) -> None:
    path = rig.current.resolve() / "model.onnx"
    path.write_bytes(b"x" + path.read_bytes()[1:])


def _fail(error: Exception) -> Callable[[Rig], None]:
    def prepare(rig: Rig) -> None:
        rig.deltas.error = error

    return prepare


def _other_result(rig: Rig) -> None:
    def apply(base: Path, delta: Path, output: Path, size_bytes: int, cancel: threading.Event) -> None:
        assert base.is_file()
        assert delta.is_file()
        assert not cancel.is_set()
        output.write_bytes(b"z" * size_bytes)

    rig.deltas.apply = apply  # type: ignore[method-assign]


def _no_result(rig: Rig) -> None:
    rig.deltas.apply = lambda *_: None  # type: ignore[method-assign]


def _nothing(_: Rig) -> None:
    return


BIG = (Chunk(sha256="e" * 64, size_bytes=200_000),) * 6
FAILURES: list[tuple[str, Callable[[], Delta], Callable[[Rig], None], str]] = [
    ("base changed on disk", Delta, _change_base, "delta_base_changed"),
    ("broken delta", lambda: Delta(b"junk" * 100), _nothing, "delta_malformed"),
    ("unknown algorithm", lambda: Delta(algorithm="tensor-9"), _nothing, "delta_algorithm"),
    ("newer version", lambda: Delta(version=2), _nothing, "delta_algorithm"),
    ("sum of chunks", lambda: Delta(delta_bytes=5), _nothing, "delta_index_damaged"),
    ("larger than the file", lambda: Delta(chunks=BIG, delta_bytes=1_200_000), _nothing,
     "delta_index_damaged"),
    ("whole is not its parts", lambda: Delta(delta_sha256="0" * 64), _nothing, "delta_damaged"),
    ("worker died", Delta, _fail(FinalError("delta_crashed", "it died")), "delta_crashed"),
    ("no numpy", Delta, _fail(FinalError("delta_no_numpy", "none here")), "delta_no_numpy"),
    ("not started", Delta, _fail(RetryError("delta_not_started", "no python")), "delta_not_started"),
    ("wrong result", Delta, _other_result, "delta_wrong_result"),
    ("no result", Delta, _no_result, "delta_io"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "harm", "code"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_whatever_is_wrong_with_a_delta_the_chunks_are_fetched_and_it_is_told(
    tmp_path: Path, make: Callable[[], Delta], harm: Callable[[Rig], None], code: str
) -> None:
    delta = make()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        harm(rig)
        told = update(rig, delta)
        (use,) = told.deltas
        assert use.failure is not None
        assert use.failure.code == code
        assert chunks_fetched(rig)
        assert rig.deltas.runs <= 1, "what failed once is not tried again in this order"


def test_an_index_that_is_no_index_is_a_failure_like_any_other(tmp_path: Path) -> None:
    delta = Delta()
    for junk in (b"{}", b"\xff\xff", b"[" * 5000, b'{"kind":"delta"}'):
        delta.index = junk
        delta.hint = replace(delta.hint, index=digest(junk), index_bytes=len(junk))
        with pytest.raises(ContentError) as refused:
            index_of(junk, delta.hint, model(NEW))
        assert refused.value.code == "delta_index_damaged"
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        (use,) = update(rig, delta).deltas
        assert use.failure is not None
        assert use.failure.code == "delta_index_damaged"


def test_a_delta_that_the_broker_does_not_hold_is_given_up_for_the_chunks(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        install_old(rig)
        rig.broker.hold(NEW)
        rig.broker.desire(DEVICE, {"digits": NEW.order(2, deltas=(Delta().hint,))})
        until(lambda: rig.runner.models["digits"].phase == "fetching", "fetching")
        for _ in range(60):
            if (rig.deployment.order, rig.deployment.outcome) == (2, OrderOutcome.ACTIVE):
                break
            rig.clock.ahead_s += 6.0
            threading.Event().wait(0.35)
        rig.wait(2, OrderOutcome.ACTIVE)
        (use,) = next(
            r.event for r in rig.reports() if isinstance(r.event, ContentFetched) and r.order == 2
        ).deltas
        assert use.failure is not None
        assert use.failure.code == "chunks_missing"


def test_a_built_file_that_a_power_cut_tore_is_built_again(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        until(lambda: not any((tmp_path / "blobs").iterdir()), "the store to be tidied")
        built = tmp_path / "blobs" / "built" / model(NEW).sha256
        built.parent.mkdir()
        built.write_bytes(bytes(model(NEW).size_bytes))
        update(rig, delta)
        assert rig.deltas.runs == 1


@pytest.mark.parametrize("order", [1, 2])
def test_what_failed_in_an_earlier_order_is_tried_in_a_new_one(tmp_path: Path, order: int) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        until(lambda: not any((tmp_path / "blobs").iterdir()), "the store to be tidied")
        memory = tmp_path / "blobs" / "built" / f"{model(NEW).sha256}.memory"
        memory.parent.mkdir()
        said = {"order": order, "base": model(OLD).sha256, "index": delta.hint.index, "starts": STARTS_MAX}
        memory.write_bytes(msgspec.json.encode({"kind": "delta-memory", "version": 1, **said}))
        update(rig, delta)
        assert rig.deltas.runs == (order == 1)


def test_without_a_base_a_hint_is_no_hint(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        delta.hold(rig)
        told = update(rig, delta, order=1)
        assert told.deltas == ()
        assert rig.deltas.runs == 0


def test_a_base_of_another_model_will_do(tmp_path: Path) -> None:
    other = release("9", model="letters", content=NOISE)
    delta = Delta()
    with running(tmp_path) as rig:
        rig.broker.hold(other)
        rig.broker.desire(DEVICE, {"letters": other.order(1)})
        until(lambda: (d := rig.runner.models.get("letters")) and d.outcome is OrderOutcome.ACTIVE, "letters")
        rig.broker.fetched.clear()
        delta.hold(rig)
        rig.broker.hold(NEW)
        wanted = {"letters": other.order(1), "digits": NEW.order(2, deltas=(delta.hint,))}
        rig.broker.desire(DEVICE, wanted)
        rig.wait(2, OrderOutcome.ACTIVE)
        assert rig.deltas.runs == 1
        assert chunks_fetched(rig) == set()


def test_no_byte_of_a_delta_is_fetched_where_there_is_no_room(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        rig.broker.hold(NEW)
        rig.disk.free = 2000
        rig.broker.desire(DEVICE, {"digits": NEW.order(2, deltas=(delta.hint,))})
        until(lambda: (d := rig.deployment).reason is not None and d.attempts > 1, "tries without room")
        assert rig.deployment.reason is not None
        assert rig.deployment.reason.code == "disk_full"
        assert not set(rig.broker.fetched) & {*delta.blobs, delta.hint.index}
        rig.disk.free = 10**12
        rig.wait(2, OrderOutcome.ACTIVE)
        assert rig.deltas.runs == 1


def test_a_disk_that_fills_up_under_a_delta_is_waited_for_and_not_held_against_it(tmp_path: Path) -> None:
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
        delta.hold(rig)
        rig.deltas.error = RetryError("disk_full", "no space left on device")
        rig.broker.hold(NEW)
        rig.broker.desire(DEVICE, {"digits": NEW.order(2, deltas=(delta.hint,))})
        until(lambda: rig.deltas.runs > STARTS_MAX + 1, "several tries")
        assert rig.deployment.reason is not None
        assert rig.deployment.reason.code == "disk_full"
        rig.deltas.error = None
        rig.wait(2, OrderOutcome.ACTIVE)
        assert chunks_fetched(rig) == set()


def test_a_delta_that_ends_this_process_twice_is_left_alone(tmp_path: Path) -> None:
    """A worker that brings the whole machine down leaves nothing but the note that it was started."""
    delta = Delta()
    with running(tmp_path) as rig:
        install_old(rig)
    frozen = tmp_path.with_name("frozen")
    for start in range(STARTS_MAX + 1):
        rig = Rig(tmp_path, rig.broker)
        began, go = threading.Event(), threading.Event()

        def freeze(began: threading.Event = began, go: threading.Event = go) -> None:
            shutil.copytree(tmp_path, frozen, symlinks=True)  # what a disk holds when the power goes now
            began.set()
            go.wait(20)

        rig.deltas.before = freeze
        delta.hold(rig)
        rig.broker.hold(NEW)
        rig.broker.desire(DEVICE, {"digits": NEW.order(2, deltas=(delta.hint,))})
        rig.start()
        if start == STARTS_MAX:
            rig.wait(2, OrderOutcome.ACTIVE)
            assert rig.deltas.runs == 0
            told = [r.event for r in rig.reports() if isinstance(r.event, ContentFetched)]
            failure = told[-1].deltas[0].failure
            assert failure is not None
            assert failure.code == "delta_interrupted"
            rig.stop()
            break
        assert began.wait(20)
        rig.deltas.error = FinalError("delta_crashed", "")
        go.set()
        rig.stop()
        shutil.rmtree(tmp_path)
        frozen.rename(tmp_path)
    assert chunks_fetched(rig)


def test_a_crash_at_any_step_of_a_delta_still_ends_in_the_right_file(tmp_path: Path) -> None:
    """Every change of the file system while FETCHING and VERIFYING by a delta, crashed before and after."""
    delta, crashes = Delta(), 0
    with running(tmp_path / "seed") as rig:
        install_old(rig)
        broker = rig.broker
    for after in (False, True):
        step, crashed = 0, True
        while crashed:
            root = tmp_path / f"{step}-{after}"
            shutil.copytree(tmp_path / "seed", root, symlinks=True)
            crashed = _crash_and_finish(root, broker, delta, step, after=after)
            crashes += crashed
            step += 1
            shutil.rmtree(root)
    assert crashes >= 40


def _crash_and_finish(root: Path, broker: MemoryBroker, delta: Delta, step: int, *, after: bool) -> bool:
    """The pieces of work themselves, on this thread; then again, as a boot would. Whether it crashed."""
    order = NEW.order(2, deltas=(delta.hint,))
    delta.hold_at(broker)
    broker.hold(NEW)
    crashed = False
    with _quiet(root, broker) as rig:
        try:
            with crash_at(step, after=after):
                rig.fetch_and_assemble(order, NEW)
        except PowerCut:
            crashed = True
    with _quiet(root, broker) as again:
        placed = again.fetch_and_assemble(order, NEW)
    assert file_sha256(placed / "model.onnx") == model(NEW).sha256
    return crashed


@contextlib.contextmanager
def _quiet(root: Path, broker: MemoryBroker) -> Iterator[Rig]:
    """An agent whose parts stand and whose loop does not run."""
    rig = Rig(root, broker)
    rig.build()
    broker.listener = rig.connection
    try:
        yield rig
    finally:
        broker.listener = None


# --- choosing ---------------------------------------------------------------------------------------

SHA = st.sampled_from([letter * 64 for letter in "abcd"])
HINTS = st.lists(
    st.builds(
        DeltaHint, from_file_sha256=SHA, to_file_sha256=SHA, algorithm=st.just("tensor-1"), index=SHA,
        index_bytes=st.integers(1, 500), size_bytes=st.integers(1, 5000),
    ),
    max_size=12,
)  # fmt: skip


@given(HINTS, st.sets(SHA), SHA, st.integers(0, 6000))
def test_the_hint_that_is_chosen_is_usable_and_no_other_is_cheaper(
    hints: list[DeltaHint], bases: set[str], wanted: str, full: int
) -> None:
    file = File(path="m.onnx", size_bytes=1, sha256=wanted)
    usable = [
        h for h in hints if h.to_file_sha256 == wanted and h.from_file_sha256 in bases and cost(h) < full
    ]
    chosen = cheapest(file, hints, bases, full)
    if chosen is None:
        assert usable == []
    else:
        assert chosen in usable
        assert cost(chosen) == min(map(cost, usable))


def test_a_delta_that_costs_as_much_as_the_chunks_is_not_worth_it() -> None:
    hint, bases = Delta().hint, {model(OLD).sha256}
    assert cost(hint) == len(Delta().index) + len(Delta().data)
    assert cheapest(model(NEW), [hint], bases, cost(hint)) is None
    assert cheapest(model(NEW), [hint], bases, cost(hint) + 1) == hint


def test_an_index_must_fit_its_hint_and_its_file() -> None:
    delta = Delta()
    assert len(index_of(delta.index, delta.hint, model(NEW)).chunks) == len(delta.blobs)
    with pytest.raises(ContentError, match="the hint says"):
        index_of(delta.index, replace(delta.hint, algorithm="other"), model(NEW))
    encoded = Delta(chunks=(Chunk(sha256="a" * 64, size_bytes=len(delta.data), encoding="new"),))
    with pytest.raises(ContentError, match="encoded in a way"):
        index_of(encoded.index, encoded.hint, model(NEW))
    small = File(path="m", size_bytes=0, sha256="a" * 64)
    chunk = Chunk(sha256="e" * 64, size_bytes=DELTA_BYTES_OVER_MAX + 1)
    large = Delta(chunks=(chunk,), delta_bytes=DELTA_BYTES_OVER_MAX + 1)
    with pytest.raises(ContentError, match="its file only"):
        index_of(large.index, large.hint, small)
    index_of(large.index, large.hint, replace(small, size_bytes=1))


# --- room -------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 300_000), max_size=20),
    st.lists(st.integers(0, 3_000_000), max_size=5),
    st.lists(st.tuples(*[st.integers(1, 100_000)] * 3), max_size=3),
)
def test_the_room_that_is_asked_for_is_what_will_be_written(
    chunks: list[int], files: list[int], deltas: list[tuple[int, int, int]]
) -> None:
    needed = room_needed(
        [Chunk(sha256="a" * 64, size_bytes=size) for size in chunks],
        [File(path="m", size_bytes=size, sha256="a" * 64) for size in files],
        [Shortcut(blobs_bytes=b, delta_bytes=d, output_bytes=o) for b, d, o in deltas],
    )
    flat = [*chunks, *files, *(size for delta in deltas for size in delta)]
    blocks = sum(-(-size // BLOCK_BYTES) for size in flat)
    assert needed == blocks * BLOCK_BYTES + JOURNAL_MARGIN_BYTES
