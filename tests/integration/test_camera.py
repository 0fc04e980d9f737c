"""The example application beside a real agent: no frame is lost or half answered while releases change."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from examples.camera.app import Network
from examples.demo.house import ROOT, House, Process, wait_for
from shallop_client import Release
from tests.brokers import Mosquitto
from tests.integration.bundles import file_of
from tests.integration.hand import Hand
from wire import bundle, chunks, codec
from wire.measures import Measure
from wire.messages import OrderOutcome, Phase
from wire.preprocess import preprocess
from wire.sla import AccuracyLimit, Limits

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE, MODEL = "roof-1", "fashion"
FOLDER = ROOT / "examples" / "fashion"
VARIANT = "onnxruntime/float_wf32_af32"
LABELS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
DATA = bundle.InputData(
    stored="raw", layout="NCHW",
    preprocessing=(bundle.Scale(factor=1 / 255), bundle.Normalize(mean=(0.2860,), std=(0.3530,))),
)  # fmt: skip
N = 60


def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with np.load(FOLDER / "validation.npz", allow_pickle=False) as data:
        return data["image"][:N], data["labels"][:N]


def scores(model: Path, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tensor = preprocess(DATA, raw)
    return np.concatenate([session.run(None, {"image": tensor[i : i + 1]})[0] for i in range(len(tensor))])


def make(folder: Path, release: str, model: Path, labels: tuple[str, ...] = LABELS) -> bundle.Manifest:
    """A bundle of one of the example's FP32 models, as the converter would lay it out."""
    folder.mkdir(parents=True)
    raw, truth = images()
    outputs = scores(model, raw)
    arrays = {
        bundle.input_key("image"): raw, bundle.LABELS_KEY: truth.astype(np.int64),
        bundle.fp32_key("logits"): outputs, bundle.host_key(VARIANT, "logits"): outputs,
    }  # fmt: skip
    np.savez(folder / "shard.npz", allow_pickle=False, **arrays)
    shard = file_of(folder, "validation/shard-0000.npz", (folder / "shard.npz").read_bytes())
    file = file_of(folder, "variants/float_wf32_af32/model.onnx", model.read_bytes())
    accuracy = Measure(value=0.93, low=0.9, high=0.95, n=2000)
    manifest = bundle.Manifest(
        model=MODEL, release=release, created_at="2026-11-21T06:00:00Z", task="classification", target="test",
        sla=Limits(accuracy=AccuracyLimit(min=0.8)), labels=labels, data={"image": DATA},
        inputs=(bundle.TensorSpec(name="image", dtype="float32", shape=(None, 1, 28, 28)),),
        outputs=(bundle.TensorSpec(name="logits", dtype="float32", shape=(None, 10)),),
        variants=(bundle.Variant(
            id=VARIANT, runtime="onnxruntime", recipe="float_wf32_af32", precision="float32",
            model_path=file.path, files=(file,), host=bundle.HostFigures(accuracy=accuracy),
        ),),
        validation=(bundle.Shard(file=shard, n_samples=N),),
        provenance=bundle.Provenance(source_model_sha256=chunks.digest(model.read_bytes())),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(codec.encode(bundle.check(manifest)))
    return manifest


class Camera:
    """The example, running, and what it has answered."""

    def __init__(self, house: House, tmp_path: Path) -> None:
        self.frames = tmp_path / "frames.npz"
        self.live = tmp_path / "live"
        self.status = tmp_path / "status.json"
        self.live.mkdir()
        raw, _ = images()
        np.savez(self.frames, allow_pickle=False, image=raw)
        models = house.state(DEVICE) / "models"
        command = [sys.executable, str(ROOT / "examples/camera/app.py"), MODEL, str(self.frames)]
        command += ["--models-dir", str(models), "--live-dir", str(self.live)]
        command += ["--status", str(self.status), "--fps", "100"]
        self.process = Process("camera", command, tmp_path)

    def answers(self) -> list[dict[str, Any]]:
        if not self.process.log.exists():
            return []
        whole = self.process.log.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    def sees(self, release: str) -> None:
        def last() -> bool:
            answers = self.answers()
            return bool(answers) and answers[-1]["release"] == release

        wait_for(f"an answer of release {release}", last)


@pytest.fixture
def hand(broker: Mosquitto) -> Iterator[Hand]:
    """Orders by hand; reports are the registry's to acknowledge."""
    with Hand(broker.port, acknowledges=False) as made:
        yield made


@pytest.fixture
def camera(bare_house: House, tmp_path: Path) -> Iterator[Camera]:
    made = Camera(bare_house, tmp_path)
    yield made
    made.process.stop()


def test_every_frame_is_answered_by_a_whole_model_while_releases_come_and_go(
    bare_house: House, hand: Hand, camera: Camera, tmp_path: Path
) -> None:
    models = {"1": FOLDER / "fashion_v1.onnx", "2": FOLDER / "fashion_v2.onnx"}
    digests = {}
    for release, model in models.items():
        make(tmp_path / release, release, model)
        digests[release] = hand.publish_bundle(tmp_path / release)
    make(tmp_path / "3", "3", models["1"], labels=LABELS[:4])
    digests["3"] = hand.publish_bundle(tmp_path / "3")
    bare_house.start()
    healthy = [sys.executable, str(ROOT / "examples/camera/healthy.py"), str(camera.status)]
    bare_house.agent(
        DEVICE, live_dir=str(camera.live), hooks={MODEL: {"health": healthy, "health_interval_s": 0.5}},
        soak={"health_failures_max": 6}, live={"look_s": 1, "n_min": 50, "report_s": 2, "flip_s": 2},
    )  # fmt: skip
    camera.process.start()  # before there is a model: it waits for the first
    hand.desire(DEVICE, MODEL, digests["1"], order=1, release="1", soak_s=1.0)
    assert hand.wait_ended(DEVICE, MODEL, 1).outcome is OrderOutcome.ACTIVE
    camera.sees("1")
    hand.desire(DEVICE, MODEL, digests["2"], order=2, release="2", soak_s=1.0)
    assert hand.wait_ended(DEVICE, MODEL, 2).outcome is OrderOutcome.ACTIVE
    camera.sees("2")

    # Release 3 passes its trial, and this application cannot use it: it is not well, and 2 comes back.
    hand.desire(DEVICE, MODEL, digests["3"], order=3, release="3", soak_s=60.0)
    ended = hand.wait_ended(DEVICE, MODEL, 3)
    assert ended.outcome is OrderOutcome.FELL_BACK
    assert ended.reason is not None
    assert ended.reason.code == "health_failed"
    assert "the camera uses" in ended.reason.detail
    assert "labels" in camera.process.log.read_text(), "the application did not say why"

    hand.rollback(DEVICE, MODEL, digests["2"], order=4)
    hand.wait_state(DEVICE, MODEL, lambda s: s.phase is Phase.IDLE and s.outcome is OrderOutcome.ROLLED_BACK)
    camera.sees("1")

    def told() -> dict[str, Any] | None:
        seen = bare_house.fleet("devices", "show", DEVICE)["live"].get(MODEL)
        return seen if seen and seen["digest"] == digests["1"] else None

    shown = wait_for("the registry to show figures of the release that came back", told)
    assert shown["figures"]["latency_n"] > 0
    assert 0.1 < shown["figures"]["confidence_mean"] <= 1.0
    assert shown["figures"]["latency_ms_p95"] >= shown["figures"]["latency_ms_p50"] > 0
    camera.process.stop()
    check(camera.answers(), models)


def check(answers: list[dict[str, Any]], models: dict[str, Path]) -> None:
    """Every frame once, in order, each with what that release's model really says of it."""
    assert [answer["frame"] for answer in answers] == list(range(len(answers)))
    raw, _ = images()
    expected = {release: scores(model, raw) for release, model in models.items()}
    for answer in answers:
        logits = expected[answer["release"]][answer["frame"] % N].astype(np.float64)
        odds = np.exp(logits - logits.max())
        assert answer["label"] == LABELS[int(logits.argmax())]
        assert answer["confidence"] == pytest.approx(float(odds.max() / odds.sum()), abs=1e-4)
    runs = [answer["release"] for answer in answers]
    changes = [release for release, _ in itertools.groupby(runs)]
    assert changes == ["1", "2", "1"], "the application did not follow, or took up what it cannot use"


@pytest.mark.parametrize("kind", ["images", "int8"])
def test_the_example_answers_alike_with_either_runtime(tmp_path: Path, kind: str) -> None:
    """ONNX Runtime and LiteRT, with an image whose axes the file has in another order, and an int8 file."""
    pytest.importorskip("ai_edge_litert.interpreter", reason="pip install 'shallop[tflite]'")
    from tests.agent import tflite  # noqa: PLC0415 - needs the runtime

    twins = tflite.images(tmp_path) if kind == "images" else tflite.quantized_product(tmp_path, "int8")
    frame = tflite.pictures(1)[0] if kind == "images" else tflite.features(1)[0]

    def answer(path: Path, axes: dict[str, Any]) -> tuple[str, float]:
        info = {"model_file": path.name, "release": "1", "variant": "x/y", "inputs": [{"name": "x"}]}
        (path.parent / "release.json").write_text("{}")
        return Network(Release(directory=path.parent, info={**info, "axes": axes})).classify(frame)

    label, confidence = answer(twins.onnx, {})
    also, near = answer(twins.tflite, dict(twins.axes))
    assert also == label
    assert near == pytest.approx(confidence, abs=0.03)
