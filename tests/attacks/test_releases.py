"""Content that the fleet did not sign, or that it signed and that must do no harm all the same."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from tests.agent.rig import DEVICE as RIG_DEVICE
from tests.agent.rig import ONE, TWO, deploy, running
from tests.agent.twins import TOPICS
from tests.attacks.cargo import Cargo, bent, cargo, of_chunks, plain
from tests.attacks.scene import DEVICE, THIEF, Scene
from tests.integration.bundles import FEATURES
from tests.keys import ORDER, RELEASE_2, ROOT_1
from wire import chunks, topics, trust
from wire.bundle import DEFLATE, Chunk, File, Shard
from wire.chunks import digest
from wire.messages import OrderOutcome, Phase

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def refused_each(scene: Scene, code: str, **releases: Cargo) -> None:
    """Orders a bad release for each of these models at once; each order ends with that name."""
    scene.number += 1
    entries = {model.replace("_", "-"): scene.entry(release) for model, release in releases.items()}
    with scene.attack(code, begins=True):
        scene.desire(replace(scene.document(), models=entries))
        for model, entry in entries.items():
            state = scene.hand.wait_ended(DEVICE, model, entry.order)
            assert state.outcome is OrderOutcome.FAILED
            assert state.reason is not None
            assert state.reason.code == code, f"{model}: {state.reason}"
            assert state.reason.lasting == "final"


def test_a_forged_release(scene: Scene) -> None:
    """By a thief, by another fleet, and by keys of this fleet that sign no content, such as the order key."""
    keys = {"tiny": THIEF, "elsewhere": RELEASE_2, "by_order": ORDER, "by_root": ROOT_1}
    releases = {model: cargo("3", 30 + n, model="tiny") for n, model in enumerate(keys)}
    for model, release in releases.items():
        scene.publish(release, keys[model])
    refused_each(scene, "bad_signature", **releases)


def test_an_altered_chunk(scene: Scene) -> None:
    """Of the right length, too long, of another release; once the right one is back, the order succeeds."""
    release = cargo("4", 40, ballast_bytes=150_000)
    scene.publish(release)
    names = [chunk.sha256 for chunk in release.file.chunks]
    wrong = (b"x" * len(release.blobs[names[0]]), b"x" * 200_000, next(iter(scene.two.blobs.values())))
    for name, bytes_ in zip(names, wrong, strict=False):
        scene.put(scene.topics.topic(topics.BLOB, digest=name), bytes_)
    refused_each(scene, "hash_mismatch", tiny=release)
    scene.blobs(release)
    scene.deploy(release)
    scene.deploy(scene.one)


def test_an_altered_manifest(scene: Scene) -> None:
    """Its limits taken out, under the name and the signature of the real one."""
    release = cargo("5", 50)
    lax = bent(release, lambda m: replace(m, sla=replace(m.sla, accuracy=None)))
    scene.publish(release)
    sealed = msgspec.json.decode(scene.sealed(release))
    sealed["payload"] = msgspec.json.decode(scene.sealed(lax))["payload"]
    scene.put(scene.topics.topic(topics.RELEASE, digest=release.digest), msgspec.json.encode(sealed))
    refused_each(scene, "bad_signature", tiny=release)


def test_mix_and_match(scene: Scene) -> None:
    """Everything is signed, and put together by somebody else: manifests swapped, and another model's."""
    release, other = cargo("6", 60), cargo("6", 61, model="other")
    scene.blobs(release)
    scene.envelope(release.digest, scene.two.raw)
    refused_each(scene, "hash_mismatch", tiny=release)
    scene.publish(other)
    refused_each(scene, "wrong_model", tiny=other)


# --- signed, and hostile all the same: whoever holds a release key may be wrong, or be robbed of it


def bomb(release: Cargo, content: bytes, announced: int) -> Cargo:
    """The release with one chunk that unpacks to `content` and says that it is `announced` bytes."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    blob = pack.compress(content) + pack.flush()
    chunk = Chunk(
        sha256=digest(blob), size_bytes=len(blob), encoding=DEFLATE, content_bytes=announced,
        content_sha256=digest(content),
    )  # fmt: skip
    file = replace(release.file, size_bytes=announced, sha256=digest(content), chunks=(chunk,))
    return release.with_file(file, **{digest(blob): blob})


def test_a_decompression_bomb_as_a_chunk(scene: Scene) -> None:
    zeros = bytes(100_000_000)
    small, large = (bomb(cargo("7", 70), zeros, announced) for announced in (1000, 1024**2))
    for release in (small, large):
        scene.publish(release)
    refused_each(scene, "chunk_too_large", tiny=small)
    refused_each(scene, "chunk_too_large", tiny=large)
    greedy = bomb(cargo("7", 71), zeros, 100_000_000)
    scene.publish(greedy)
    refused_each(scene, "invalid_field", tiny=greedy)


def shard_of(release: Cargo, data: bytes) -> Cargo:
    """The release with another validation shard."""
    cut = [plain(bytes(piece)) for piece in chunks.pieces(data, chunks.cut(len(data)))]
    file, blobs = of_chunks("validation/shard-0000.npz", data, cut)
    manifest = replace(release.manifest, validation=(Shard(file=file, n_samples=64),))
    return Cargo(manifest=manifest, blobs={**release.blobs, **blobs})


def npz(head: bytes, zeros: int = 0) -> bytes:
    """An archive that holds these bytes, and zeros, as the samples of input x."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("input/x.npy", "w") as entry,
    ):
        entry.write(head)
        for _ in range(zeros // 1_000_000):
            entry.write(bytes(1_000_000))
    return target.getvalue()


def array_head(rows: int, dtype: type[np.float32]) -> bytes:
    """The head of a `.npy` file."""
    target = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False}
    np.lib.format.write_array_header_1_0(target, {**fields, "shape": (rows, FEATURES)})
    return target.getvalue()


def test_bombs_and_a_pickle_as_samples(scene: Scene) -> None:
    """300 MB in 300 KB, a head that promises a terabyte, and objects that would run code when read."""
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"an": "object"}], object), allow_pickle=True)
    shards = {
        "tiny": npz(array_head(300_000_000 // 64, np.float32), 300_000_000),
        "promise": npz(array_head(10**12 // 64, np.float32)),
        "pickle": npz(pickled.getvalue()),
        "no-archive": b"PK" + bytes(1000),
    }
    releases = {model: shard_of(cargo("8", 80, model=model), data) for model, data in shards.items()}
    for release in releases.values():
        scene.publish(release)
    refused_each(scene, "shard_unreadable", **releases)


BAD_PATHS = (
    "../../../outside.onnx",
    "/var/outside.onnx",
    "a/../../outside.onnx",
    ".hidden",
    "a//b",
    "a\\b",
    "c:x",
)


def test_a_path_that_leads_out_of_the_release(scene: Scene) -> None:
    releases = {}
    for n, path in enumerate(BAD_PATHS):
        name = f"path-{n}" if n else "tiny"
        release = cargo("9", 90, model=name)
        releases[name] = release.with_file(replace(release.file, path=path))
        scene.publish(releases[name])
    refused_each(scene, "invalid_field", **releases)
    assert not list(scene.folder.rglob("*outside*"))


def test_a_file_in_the_place_of_one_of_the_agents(scene: Scene) -> None:
    release = cargo("10", 100)
    releases = {}
    for n, path in enumerate(("release.json", "variants/float_wf32_af32/manifest.json")):
        releases["tiny" if not n else f"own-{n}"] = release.with_file(replace(release.file, path=path))
    releases["own-1"] = bent(releases["own-1"], lambda m: replace(m, model="own-1"))
    for one in releases.values():
        scene.publish(one)
    refused_each(scene, "path_reserved", **releases)


def tiny_chunks(release: Cargo, count: int) -> Cargo:
    """The release with a file of so many chunks, all different."""
    cut = tuple(Chunk(sha256=f"{n:064x}", size_bytes=1) for n in range(count))
    return release.with_file(File(path="m.onnx", size_bytes=count, sha256=digest(b"?"), chunks=cut))


def test_a_million_tiny_chunks(tmp_path: Path) -> None:
    """No broker of ours carries that manifest, so that the broker's twin brings it to the agent."""
    one = msgspec.json.encode(tiny_chunks(cargo("11", 110, model="digits"), 1).file.chunks[0])
    raw = tiny_chunks(cargo("11", 110, model="digits"), 1).raw.replace(one, b",".join([one] * 10**6))
    with running(tmp_path, prepare=lambda rig: rig.broker.hold(ONE, TWO)) as rig:
        deploy(rig, ONE)
        topic = TOPICS.topic(topics.RELEASE, digest=digest(raw))
        rig.broker.tell(topic, trust.seal("release", raw), retain=True)
        rig.broker.desire(RIG_DEVICE, {"digits": replace(ONE.order(2), digest=digest(raw))})
        state = rig.wait(2, OrderOutcome.FAILED)
        assert state.reason is not None
        assert state.reason.code == "oversized"
        assert rig.running == ONE.digest
        deploy(rig, TWO, order=3)


def test_as_many_tiny_chunks_as_a_manifest_holds(scene: Scene) -> None:
    """None of them exists; the device goes on asking, and drops it all for the next honest order."""
    release = tiny_chunks(cargo("12", 120), 45_000)
    scene.publish(release)
    with scene.attack("superseded", begins=True):
        scene.order(release)
        fetching = (release.digest, Phase.FETCHING)
        scene.hand.wait_state(DEVICE, "tiny", lambda s: (s.in_flight, s.phase) == fetching)
        scene.order(scene.runs)


def test_a_manifest_that_lies_about_its_sizes(scene: Scene) -> None:
    release = cargo("13", 130)
    huge = release.with_file(replace(release.file, size_bytes=release.file.size_bytes + 1))
    wrong = release.with_file(replace(release.file, sha256=digest(b"another file")))
    for one in (huge, wrong):
        scene.publish(one)
    refused_each(scene, "manifest_incoherent", tiny=huge)
    refused_each(scene, "hash_mismatch", tiny=wrong)
