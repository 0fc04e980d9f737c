"""Every reader of bytes from outside: the saved inputs, and a seeded number of mutations of them.

The long run is `make fuzz`; what it finds becomes a file below `tests/fuzz/corpus` and is read here for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
from msgspec.structs import replace

from tests.fuzz import corpus_files, engine, registry, targets_fleet
from tests.fuzz.guide import Guide
from tests.fuzz.mutate import havoc
from tests.fuzz.target import Finding, Target, execute, growth_bytes
from wire import codec
from wire.errors import WireError
from wire.topics import CHANNELS

SEED = int(os.environ.get("SHALLOP_FUZZ_SEED", "20261121"))
SHARE = float(os.environ.get("SHALLOP_FUZZ_SHARE", "1"))
GROWTH_BYTES_MAX = 512 * 1024
COUNTED: dict[str, int] = {}


@pytest.fixture(scope="module", autouse=True)
def _said(request: pytest.FixtureRequest) -> Iterator[None]:
    """How many executions that were, where a person sees it."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{sum(COUNTED.values())} executions over {len(COUNTED)} targets, seed {SEED}")  # noqa: T201


@pytest.mark.parametrize("name", registry.TARGETS)
def test_whatever_comes_in_is_read_or_refused_by_name(name: str) -> None:
    target = registry.TARGETS[name]
    saved = registry.saved(target)
    assert saved, f"{name} has no input to begin with; see tests/fuzz/make_seeds.py"
    done = engine.run(target, saved, seed=SEED, executions=int(target.weight * SHARE))
    COUNTED[name] = done.executions
    assert [(found.name, found.detail) for found in done.found] == []


@pytest.mark.parametrize("name", registry.TARGETS)
def test_honest_inputs_are_read(name: str) -> None:
    target = registry.TARGETS[name]
    ends = {key: execute(target, data) for key, data in target.seeds().items()}
    hostile = {"bomb", "laughs", "merges"}
    assert {key: end for key, end in ends.items() if end != "read" and key not in hostile} == {}


@pytest.mark.parametrize("name", ["wire.desired", "state.journal", "worker.shard", "models.tflite_walk"])
def test_nothing_stays_in_memory(name: str) -> None:
    target, random = registry.TARGETS[name], Random(SEED)
    saved = registry.saved(target)
    inputs = [*saved, *(target.mutate(random, random.choice(saved)) for _ in range(30))]
    assert growth_bytes(target, inputs) < GROWTH_BYTES_MAX


def test_no_channel_is_forgotten() -> None:
    named = {f"wire.{channel.name}" for channel in CHANNELS}
    named |= {f"wire.envelope.{channel.name}" for channel in CHANNELS if channel.enveloped}
    assert named <= set(registry.TARGETS)
    kinds = {channel.kind for channel in CHANNELS} - {None}
    assert kinds <= {codec.kind_of(kind) for kind in codec._DECODERS}


def test_no_route_is_forgotten() -> None:
    """A route that reads a body has a target; those that read none are listed here."""
    bodiless = {
        "/api/devices/{device}/clear-duplicate",
        "/api/rollouts/{id}/{verb}",
        "/api/devices/{device}/revoke",
        "/api/enrolments/{which}/cancel",
        "/api/tokens/{token}/revoke",
    }
    app = targets_fleet._api().site.app
    paths = {(m, route.path) for route in app.routes for m in route.methods or () if m in {"PUT", "POST"}}  # type: ignore[attr-defined]
    blob = "/api/bundles/{release}/blobs/{digest}"
    wanted = {path for _, path in paths} - bodiless - {blob}
    named = {path for _, _, path, _ in targets_fleet.ROUTES}
    assert {p for p in wanted if not any(_fits(p, one) for one in named)} == set()


def _fits(pattern: str, path: str) -> bool:
    words, given = pattern.split("/"), path.split("/")
    return len(words) == len(given) and all(
        a.startswith("{") or a == b for a, b in zip(words, given, strict=True)
    )


def test_the_corpus_stays_small_and_belongs_to_targets() -> None:
    files = [path for path in corpus_files.CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < corpus_files.CORPUS_BYTES_MAX
    assert {path.parent.name for path in files} <= set(registry.TARGETS)


# --- the fuzzer itself finds what it looks for


def _target(run: object, **more: object) -> Target:
    return Target(name="made.up", run=run, seeds=lambda: {"a": b"abcd"}, mutate=havoc, **more)  # type: ignore[arg-type]


def _found(target: Target) -> str:
    with pytest.raises(Finding) as raised:
        execute(target, b"abcd", twice=True, memory=True)
    return raised.value.kind


def test_it_sees_a_crash() -> None:
    assert _found(_target(lambda data: data[99])) == "crash"


def test_it_sees_an_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_data: bytes) -> object:
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.target.CPU_S_MAX", 0.2)
    assert _found(_target(endless)) == "hang"


def test_it_sees_memory() -> None:
    assert _found(_target(lambda data: len(data * 10**6), memory_bytes_max=10**6)) == "memory"


def test_it_sees_what_changes_its_mind() -> None:
    turns = iter(range(9))
    assert _found(_target(lambda _data: next(turns))) == "unstable"


def test_it_sees_a_lost_round_trip() -> None:
    assert _found(_target(bytes, again=lambda value: value + b"x")) == "roundtrip"


def test_it_sees_an_error_without_a_name() -> None:
    def refuse(_data: bytes) -> object:
        raise WireError("No Name", "why")

    assert _found(_target(refuse)) == "unnamed"


def _hidden(data: bytes) -> object:
    """Four bytes, one after the other: by chance a matter of four thousand million tries."""
    if data[:1] == b"\x7f":
        if data[1:2] == b"E":
            if data[2:3] == b"L":
                if data[3:4] == b"F":
                    raise RuntimeError("found")
                return 3
            return 2
        return 1
    return 0


def _one_byte(random: Random, data: bytes) -> bytes:
    at = random.randrange(4)
    return data[:at] + random.randbytes(1) + data[at + 1 :]


def test_coverage_leads_to_what_chance_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.guide._ROOMS", (__file__,))
    target = replace(_target(_hidden), mutate=_one_byte)
    led = engine.run(target, [b"abcd"], seed=SEED, executions=25_000, guide=Guide())
    assert [found.kind for found in led.found] == ["crash"]
    assert engine.run(target, [b"abcd"], seed=SEED, executions=25_000).found == []
