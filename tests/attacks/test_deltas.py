"""Deltas that are not what they should be: a detour at most; what is installed is what the manifest names."""

from __future__ import annotations

import msgspec
import pytest

from fleet.deltas.encoder import ALGORITHM, encode
from tests.attacks.cargo import Cargo, cargo, of_chunks, plain
from tests.attacks.scene import DEVICE, Scene
from wire import chunks, topics
from wire.deltas import DeltaHint, DeltaIndex
from wire.messages import ContentFetched, OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
BALLAST = 300_000


def content(release: Cargo) -> bytes:
    return b"".join(release.blobs[chunk.sha256] for chunk in release.file.chunks)


def tuned() -> Cargo:
    """A release whose model differs from the base's in a few bytes of its weights, so that a delta pays."""
    base = cargo("30", 300, ballast_bytes=BALLAST)
    data = bytearray(content(base))
    for at in range(len(data) // 10 // 4 * 4, len(data) * 9 // 10, 400):
        data[at] ^= 1
    cut = [plain(bytes(piece)) for piece in chunks.pieces(bytes(data), chunks.cut(len(data)))]
    file, blobs = of_chunks(base.file.path, bytes(data), cut)
    return cargo("31", 300, ballast_bytes=BALLAST).with_file(file, **blobs)


@pytest.fixture(scope="module")
def based(scene: Scene) -> tuple[Scene, Cargo, Cargo]:
    """The device runs the base; the fine-tuned release is published."""
    base, new = cargo("30", 300, ballast_bytes=BALLAST), tuned()
    for release in (base, new):
        scene.publish(release)
    return scene, base, new


def hint(scene: Scene, base: Cargo, new: Cargo, delta: bytes, announced: bytes | None = None) -> DeltaHint:
    """Publishes bytes as the delta; its index says what it says of `announced`."""
    said = delta if announced is None else announced
    pieces = [plain(bytes(piece)) for piece in chunks.pieces(delta, chunks.cut(len(delta)))]
    index = msgspec.json.encode(
        DeltaIndex(
            algorithm=ALGORITHM, delta_bytes=len(said), delta_sha256=chunks.digest(said),
            chunks=tuple(chunk for chunk, _ in pieces),
        )
    )  # fmt: skip
    for blob in (index, *(piece for _, piece in pieces)):
        scene.put(scene.topics.topic(topics.BLOB, digest=chunks.digest(blob)), blob)
    return DeltaHint(
        from_file_sha256=base.file.sha256, to_file_sha256=new.file.sha256, algorithm=ALGORITHM,
        index=chunks.digest(index), index_bytes=len(index), size_bytes=len(delta),
    )  # fmt: skip


def ends_whole(scene: Scene, base: Cargo, new: Cargo, given: DeltaHint, code: str) -> None:
    """The order succeeds by chunks, the delta's failure is told, and the next order is obeyed."""
    scene.deploy(base)
    since = len(scene.hand.reports)
    scene.order(new, deltas=(given,))
    assert scene.wait_ended(scene.number - 1).outcome is OrderOutcome.ACTIVE
    scene.stopped(since, code)
    uses = [r.event for r in scene.hand.reports[since:] if isinstance(r.event, ContentFetched)]
    assert [use.failure.code for event in uses for use in event.deltas if use.failure] == [code]
    standing = scene.standing()
    assert standing.where.startswith(new.digest)
    assert standing.files["model.onnx"] == new.file.sha256
    scene.deploy(scene.one)


def test_a_hostile_delta(based: tuple[Scene, Cargo, Cargo]) -> None:
    """Junk, a good delta cut short, and a bomb: a head that promises far more than the file has."""
    scene, base, new = based
    good = encode(content(base), content(new))
    assert good is not None
    ends_whole(scene, base, new, hint(scene, base, new, b"\xff" * 5000), "delta_invalid")
    ends_whole(scene, base, new, hint(scene, base, new, good[: len(good) // 2]), "delta_truncated")


def test_a_delta_of_another_file(based: tuple[Scene, Cargo, Cargo]) -> None:
    """Well made, signed for, and leading to a model that the manifest does not name."""
    scene, base, new = based
    harmful = encode(content(base), content(base)[:-4] + b"\x7f\x7f\x7f\x7f")
    assert harmful is not None
    ends_whole(scene, base, new, hint(scene, base, new, harmful), "delta_wrong_result")


def test_a_delta_that_is_not_its_index(based: tuple[Scene, Cargo, Cargo]) -> None:
    scene, base, new = based
    good = encode(content(base), content(new))
    assert good is not None
    lying = hint(scene, base, new, good, announced=good[::-1])
    ends_whole(scene, base, new, lying, "delta_damaged")


def test_a_poisoned_base(based: tuple[Scene, Cargo, Cargo]) -> None:
    """Somebody on the device changed the file that a delta starts from: it is not built upon."""
    scene, base, new = based
    good = encode(content(base), content(new))
    assert good is not None
    given = hint(scene, base, new, good)
    scene.deploy(base)
    scene.deploy(scene.one)
    (previous,) = scene.house.state(DEVICE).glob(f"models/tiny/releases/{base.digest}*/model.onnx")
    whole = previous.read_bytes()
    previous.write_bytes(whole[:-1] + b"\0")
    since = len(scene.hand.reports)
    scene.order(new, deltas=(given,))
    assert scene.wait_ended(scene.number - 1).outcome is OrderOutcome.ACTIVE
    scene.stopped(since, "delta_base_changed")
    assert scene.standing().files["model.onnx"] == new.file.sha256
    scene.deploy(scene.one)
