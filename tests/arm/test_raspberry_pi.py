"""An agent on a Raspberry Pi 4 and one on a Raspberry Pi 5, emulated: the real path, and the same answers.

The daemon, its workers and every model run as aarch64 processes of real wheels (`tests.arm.sysroot`); broker,
registry and converter run on this machine. Emulation proves answers, never latency: no latency, energy or
memory is looked at here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest

from examples.demo.house import House
from tests.arm import answers, comparison, story, sysroot
from tests.arm.boards import HWCAP_ASIMDDP, KINDS, Board, Kind, board
from tests.brokers import Mosquitto
from tests.integration.hand import Hand
from wire.messages import OrderOutcome

pytestmark = [pytest.mark.arm, pytest.mark.broker, pytest.mark.timeout(600)]
SAMPLES = 32
U8S8 = "onnxruntime/static_wi8_au8_pc_minmax"
SIGNED = {"session.qdqisint8allowed": "1"}
"""With it x86 runs what ARM runs (FACTS.md section 1, trap 10)."""
DEVICES = [kind.device for kind in KINDS]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By target and release; two conversions at a time."""
    sysroot.emulator()
    folder = story.data(tmp_path_factory.mktemp("bundles"))

    def signed(at: tuple[str, str]) -> Path:
        target, release = at
        names = [f"{runtime}/{story.TWIN}" for runtime in story.NAMED[release]]
        return story.converted(
            folder, file=story.FILES[release], target=target, release=release, candidates=names
        )

    wanted = list(product(DEVICES, story.FILES))
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(wanted, pool.map(signed, wanted), strict=True))
    made["x86", "1"] = story.converted(
        folder, file=story.FILES["1"], target="x86-64-vnni", release="1", candidates=[U8S8]
    )
    return made


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Board]]:
    """Both of them, with this tree's wheel."""
    sysroot.emulator()
    sysroot.base()
    shallop = sysroot.wheel(tmp_path_factory.mktemp("wheel"))
    with ExitStack() as stack:
        yield {kind.device: stack.enter_context(board(kind, shallop)) for kind in KINDS}


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory,
    boards: dict[str, Board],
    bundles: dict[tuple[str, str], Path],
) -> dict[str, story.Told]:
    """What came of the story on each board; they run side by side."""
    folder = tmp_path_factory.mktemp("arm")
    with (
        Mosquitto(folder / "mosquitto") as mosquitto,
        House(folder / "house", broker_port=mosquitto.port) as house,
        Hand(mosquitto.port, acknowledges=False) as hand,
        ThreadPoolExecutor(len(boards)) as pool,
    ):
        house.start_registry()
        stories = {
            device: story.Story(house, hand, one, {r: bundles[device, r] for r in story.FILES})
            for device, one in boards.items()
        }
        running = {device: pool.submit(one.tell) for device, one in stories.items()}
        return {device: one.result() for device, one in running.items()}


@pytest.mark.parametrize("kind", KINDS, ids=DEVICES)
def test_the_agent_knows_its_board(told: dict[str, story.Told], kind: Kind) -> None:
    said = told[kind.device].identity
    assert said.hardware.arch == "aarch64"
    assert said.hardware.board == kind.board
    assert said.hardware.cpu == kind.cpu
    assert said.hardware.cores == 4
    assert ("asimddp" in said.hardware.cpu_features) is kind.dot_product
    assert said.hardware.power_sensor is None
    assert {one.name for one in said.runtimes} == set(sysroot.RUNTIMES)
    assert "bookworm" in said.os
    assert said.agent_version != "unknown"


@pytest.mark.parametrize("kind", KINDS, ids=DEVICES)
def test_its_doctor_finds_what_it_needs(told: dict[str, story.Told], kind: Kind) -> None:
    findings = told[kind.device].findings
    if findings is None:
        pytest.skip("shallop-agent has no doctor in this tree")
    found = {one["name"]: one["status"] for one in findings}
    assert {name for name, status in found.items() if status == "problem"} == set()
    assert {found[f"runtime:{name}"] for name in sysroot.RUNTIMES} == {"ok"}


@pytest.mark.parametrize("kind", KINDS, ids=DEVICES)
def test_the_processor_has_the_instructions_of_the_board(boards: dict[str, Board], kind: Kind) -> None:
    """The kernel's own word (AT_HWCAP), by which the runtimes choose their kernels, agrees with /proc."""
    code = "import ctypes; print(ctypes.CDLL(None, use_errno=True).getauxval(16))"
    capabilities = boards[kind.device].script(code)
    assert isinstance(capabilities, int)
    assert bool(capabilities & HWCAP_ASIMDDP) is kind.dot_product


@pytest.mark.parametrize("kind", KINDS, ids=DEVICES)
def test_two_releases_and_back(told: dict[str, story.Told], kind: Kind) -> None:
    """Fetched, tried in the release's runtime, switched to; then one MQTT message, and `current` is back."""
    said = told[kind.device]
    digests = {}
    for release, variant in story.FIRST.items():
        state, current = said.states[release], said.current[release]
        assert state.outcome is OrderOutcome.ACTIVE, state.reason
        assert state.active is not None
        assert state.active.variant == current["variant"] == variant
        assert current["release"] == release
        assert not state.degraded
        digests[release] = state.active.digest
    back = said.states["back"]
    assert back.active is not None
    assert back.active.digest == digests["1"]
    assert back.blocked == (digests["2"],)
    assert said.current["back"] == said.current["1"]
    shown = said.status.get("models", said.status)[f"fashion-{kind.target}"]
    assert shown.get("state", shown)["active"]["release"] == "1"


@pytest.mark.parametrize("kind", KINDS, ids=DEVICES)
def test_each_trial_found_the_answers_of_the_host(told: dict[str, story.Told], kind: Kind) -> None:
    """The bundle carries what x86 answered as an ARM would; the board reports every number equal."""
    for release in story.FIRST:
        trial = told[kind.device].states[release].trial
        assert trial is not None
        result = trial.result
        assert result.conformance is not None
        assert result.conformance.equal == 1.0
        assert result.conformance.conforms
        assert result.cpu == ("aarch64-dotprod" if kind.dot_product else "aarch64-baseline")
        # qemu-user has no seccomp and no Landlock, and the worker says so.
        assert all("the worker ran without" in note for note in result.notes), result.notes
    second = told[kind.device].states["2"].trial
    assert second is not None
    assert second.result.against_incumbent is not None, (
        "the ONNX incumbent answered beside the TFLite candidate"
    )


def _asked(bundles: dict[tuple[str, str], Path], target: str) -> dict[str, answers.Asked]:
    """The three kinds of INT8 model, the two signed ones as the converter made them for that target."""
    mine = bundles[target, "1"]
    places = {
        "U8S8 onnxruntime": (bundles["x86", "1"], U8S8),
        "S8S8 onnxruntime": (mine, story.FIRST["1"]),
        "INT8 ai-edge-litert": (mine, story.FIRST["2"]),
    }
    return {
        name: answers.Asked(name=name, bundle=str(folder), variant=variant, samples=SAMPLES)
        for name, (folder, variant) in places.items()
    }


def _answered(one: Board | None, asked: list[answers.Asked], folder: Path) -> dict[str, np.ndarray]:
    """On a board, or here."""
    where = one.kind.device if one else "host"
    order, output = folder / f"{where}.json", folder / f"{where}.npz"
    order.write_bytes(msgspec.json.encode(asked))
    command = [answers.__file__, str(order), str(output)]
    if one is None:
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
    else:
        one.run(*command, timeout_s=300)
    with np.load(output, allow_pickle=False) as arrays:
        return dict(arrays)


def _rows(
    kind: Kind, one: Board, bundles: dict[tuple[str, str], Path], folder: Path
) -> dict[str, comparison.Compared]:
    """By kind of model and by how x86 was told to run it."""
    asked = _asked(bundles, kind.target)
    flagged = [
        msgspec.structs.replace(ask, name=f"{name}, flag", session_config=SIGNED)
        for name, ask in asked.items()
        if "onnxruntime" in name
    ]
    there = _answered(one, list(asked.values()), folder)
    here = _answered(None, [*asked.values(), *flagged], folder)
    rows = {}
    for name, values in here.items():
        ask = asked[name.removesuffix(", flag")]
        manifest = answers.manifest_of(Path(ask.bundle))
        variant = next(v for v in manifest.variants if v.id == ask.variant)
        step = comparison.step_of(manifest, variant, Path(ask.bundle))
        rows[name] = comparison.compared(there[ask.name], values, step)
    return rows


def test_int8_answers_are_those_of_x86(
    boards: dict[str, Board],
    bundles: dict[tuple[str, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit by bit for what ARM targets get, where x86 is told to run the integer kernels too."""
    rows: dict[str, comparison.Compared] = {}
    for kind in KINDS:
        (tmp_path / kind.device).mkdir()
    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = pool.map(
            lambda kind: _rows(kind, boards[kind.device], bundles, tmp_path / kind.device), KINDS
        )
        for kind, of_kind in zip(KINDS, found, strict=True):
            rows |= {f"{kind.qemu}: {name}": row for name, row in of_kind.items()}
    flag = f"{next(iter(SIGNED))}=1"
    with capsys.disabled():
        said = f"INT8 answers of aarch64 beside x86, {SAMPLES} pictures (flag: x86 ran with {flag})"
        sys.stdout.write(f"\n{said}\n{comparison.table(rows)}\n")
    made_for_arm = [row for name, row in rows.items() if name.endswith(("S8S8 onnxruntime, flag", "litert"))]
    assert len(made_for_arm) == 2 * 2
    assert {row.equal for row in made_for_arm} == {1.0}
    # U8S8 is what x86 gets; nobody is promised the same numbers of it on ARM, but it is the same model.
    assert min(row.same_class for row in rows.values()) > 0.9
