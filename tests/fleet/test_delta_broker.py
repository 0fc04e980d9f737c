"""A whole registry on a real Mosquitto: a device reads from its order how to make the new file of the old."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fleet.adapters.key_files import verify as check
from fleet.adapters.release_holder import RegistryHolder, find_release
from fleet.publish.upload import read_bundle
from fleet.verification import Asked, verify
from fleet.verify import Outcome
from tests.fleet.bundles import write_bundle
from tests.fleet.delta_samples import Weights, applied
from tests.fleet.processes import read_retained, start_devices, wait_for
from tests.fleet.scripted import UNSIGNED
from tests.fleet.test_broker import TOPICS, Scene
from wire import topics as wt
from wire.codec import decode
from wire.deltas import DeltaIndex
from wire.messages import Desired
from wire.trust import open_envelope

pytestmark = pytest.mark.broker

OLD = Weights()
FILES = {"v1": OLD.onnx(), "v2": OLD.moved(1e-3).onnx()}


@pytest.fixture(name="scene")
def _scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_the_device_makes_the_new_file_of_the_old_one(scene: Scene, tmp_path: Path) -> None:
    scene.devices = start_devices(1, scene.broker.port)
    scene.online(1)
    records = scene.folder / "data" / "deltas"
    for release, content in FILES.items():
        write_bundle(scene.folder / release, release, content=content)
        scene.client.upload(read_bundle(scene.folder / release), lambda _sent, _total: None)
        if release == "v2":
            wait_for("the delta to be made", lambda: any(records.glob("*.json")))
        scene.completed(scene.start(release, "100%"))
    held = read_retained(scene.broker.port, TOPICS)
    device = scene.devices[0].device.device
    order = open_envelope(
        held[TOPICS.topic(wt.DESIRED, device=device)], "desired", UNSIGNED, wt.DESIRED.size_bytes_max
    )
    (hint,) = decode(order, Desired, wt.DESIRED.size_bytes_max).models["camera"].deltas
    assert hint.algorithm == "tensor-1"
    index = msgspec.json.decode(held[TOPICS.topic(wt.BLOB, digest=hint.index)], type=DeltaIndex)
    delta = b"".join(held[TOPICS.topic(wt.BLOB, digest=chunk.sha256)] for chunk in index.chunks)
    assert len(delta) == hint.size_bytes < 0.4 * len(FILES["v2"])
    assert applied(tmp_path, FILES["v1"], delta, len(FILES["v2"])) == FILES["v2"]
    found = verify(
        RegistryHolder(scene.client, find_release(scene.client, "camera@v2")), Asked(subject="v2"), check
    )
    row = next(row for row in found.rows if row.check == "deltas")
    assert (row.outcome, row.reason[:13]) == (Outcome.OK, "1 delta whole"), row
    assert scene.registry.stop() == 0
    assert "Traceback" not in scene.registry.log.read_text()
