"""Bundles on their way in: what the command line refuses, and what the registry refuses again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from fleet.adapters.blob_files import BlobFiles, PayloadFiles
from fleet.ports import ConflictError, NotFoundError
from fleet.publish.compress import compressed
from fleet.publish.content import read_manifest
from fleet.publish.upload import read_bundle
from tests.fleet.bundles import write_bundle
from tests.fleet.twins import TOPICS, Harness
from wire import topics as wt
from wire.bundle import Chunk, Manifest
from wire.codec import encode
from wire.encodings import decoded
from wire.errors import ContentError, ShallopError
from wire.trust import Policy, open_envelope

TEXT = b"weights of one kind, " * 10_000


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.store.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", "v1", size_bytes=50_000)
    return tmp_path / "b"


def rewrite(directory: Path, change: Callable[[Manifest], Manifest]) -> None:
    path = directory / "manifest.json"
    path.write_bytes(encode(change(read_manifest(path.read_bytes()))))


def test_a_bundle_on_disk_gives_back_every_blob(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert len(found.places) == 6
    for digest in found.places:
        assert hashlib.sha256(found.blob(digest)).hexdigest() == digest
    assert found.digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def _files(manifest: Manifest) -> dict[str, tuple[str, int]]:
    return {file.path: (file.sha256, file.size_bytes) for file in manifest.all_files()}


def test_a_compressed_bundle_has_the_same_files_and_smaller_blobs(bundle: Path, harness: Harness) -> None:
    write_bundle(bundle, "v1", content=TEXT)
    data = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(data[:-1] + b',"newer":{"field":1}}')
    plain = read_bundle(bundle)
    small = compressed(plain)
    assert small == compressed(plain), "publishing again must change nothing"
    assert _files(small.manifest) == _files(plain.manifest)
    assert b'"newer":{"field":1}' in small.data
    assert sum(p.size_bytes for p in small.places.values()) < plain.manifest.variants[0].size_bytes / 10
    for file in small.manifest.all_files():
        content = b"".join(decoded(small.blob(chunk.sha256), chunk) for chunk in file.chunks)
        assert hashlib.sha256(content).hexdigest() == file.sha256
    _, missing = harness.intake.begin(small.data)
    for digest in missing:
        harness.intake.blob(small.digest, digest, iter([small.blob(digest)]))
    assert harness.intake.finish(small.digest).state == "published"
    # A bundle whose manifest was compressed before is published as it is.
    (bundle / "manifest.json").write_bytes(small.data)
    again = read_bundle(bundle)
    assert (again.digest, compressed(again).digest) == (small.digest, small.digest)
    assert {digest: again.blob(digest) for digest in again.places} == {
        digest: small.blob(digest) for digest in small.places
    }


def test_chunks_that_another_zlib_compressed_are_refused_by_name(bundle: Path) -> None:
    write_bundle(bundle, "v1", content=TEXT)
    manifest = compressed(read_bundle(bundle)).manifest
    first, *rest = manifest.variants[0].files[0].chunks

    def change(found: Manifest) -> Manifest:
        chunks = (replace(first, sha256="a" * 64), *rest)
        file = replace(manifest.variants[0].files[0], chunks=chunks)
        return replace(found, variants=(replace(found.variants[0], files=(file,)),))

    rewrite(bundle, change)
    with pytest.raises(ContentError) as caught:
        read_bundle(bundle)
    assert caught.value.code == "packed_otherwise"


def _damage(directory: Path) -> None:
    path = directory / "model" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[30_000] ^= 1
    path.write_bytes(content)


def _shorten(directory: Path) -> None:
    path = directory / "model" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def _lie_about_the_whole(directory: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        variant = manifest.variants[0]
        file = replace(variant.files[0], sha256="0" * 64)
        return replace(manifest, variants=(replace(variant, files=(file,)),))

    rewrite(directory, change)


def _lead_outside(directory: Path) -> None:
    path = directory / "model" / "model.onnx"
    outside = directory.parent / "outside.onnx"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda d: (d / "model" / "model.onnx").unlink(), "file_missing"),
        (lambda d: (d / "manifest.json").unlink(), "file_missing"),
        (_damage, "hash_mismatch"),
        (_shorten, "size_mismatch"),
        (_lie_about_the_whole, "hash_mismatch"),
        (_lead_outside, "outside_bundle"),
        (lambda d: (d / "manifest.json").write_bytes(b"{}"), "malformed"),
        (lambda d: (d / "manifest.json").write_bytes(b"x" * (4 * 1024 * 1024 + 1)), "oversized"),
    ],
    ids=["no file", "no manifest", "damaged", "short", "wrong whole", "link", "not a manifest", "oversized"],
)
def test_a_spoiled_bundle_is_refused_before_anything_is_sent(
    bundle: Path, spoil: Callable[[Path], object], code: str
) -> None:
    spoil(bundle)
    with pytest.raises(ShallopError) as caught:
        read_bundle(bundle)
    assert caught.value.code == code


def _path(manifest: Manifest, path: str) -> Manifest:
    variant = manifest.variants[0]
    file = replace(variant.files[0], path=path)
    return replace(manifest, variants=(replace(variant, files=(file,), model_path=path),))


def _chunks(manifest: Manifest, chunks: tuple[Chunk, ...], size_bytes: int) -> Manifest:
    variant = manifest.variants[0]
    file = replace(variant.files[0], chunks=chunks, size_bytes=size_bytes)
    return replace(manifest, variants=(replace(variant, files=(file,)),))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: _path(m, "../outside"), "invalid_field"),
        (lambda m: _path(m, "/etc/passwd"), "invalid_field"),
        (lambda m: _path(m, "a/.hidden"), "invalid_field"),
        (lambda m: replace(m, version=2), "unsupported_version"),
        (lambda m: replace(m, model="Not A Name"), "invalid_field"),
        (lambda m: replace(m, variants=m.variants * 2), "manifest_incoherent"),
        (lambda m: _chunks(m, (), 5), "manifest_incoherent"),
        (
            lambda m: _chunks(m, (Chunk(sha256="a" * 64, size_bytes=300_000),), 300_000),
            "bundle_too_large",
        ),
        (
            lambda m: _chunks(
                m,
                (Chunk(sha256="a" * 64, size_bytes=1), Chunk(sha256="a" * 64, size_bytes=2)),
                3,
            ),
            "manifest_incoherent",
        ),
    ],
    ids=[
        "parent path",
        "absolute path",
        "hidden path",
        "newer version",
        "bad name",
        "two variants of one id",
        "chunks do not add up",
        "a chunk above one message",
        "one chunk of two sizes",
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_by_name(
    harness: Harness, bundle: Path, change: Callable[[Manifest], Manifest], code: str
) -> None:
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    with pytest.raises(ShallopError) as caught:
        harness.intake.begin(encode(change(manifest)))
    assert caught.value.code == code
    assert harness.people.releases() == []


def test_an_upload_goes_on_where_it_stopped(harness: Harness, bundle: Path) -> None:
    found = read_bundle(bundle)
    row, missing = harness.intake.begin(found.data)
    assert (row.state, sorted(missing)) == ("uploading", sorted(found.places))
    harness.intake.blob(found.digest, missing[0], iter([found.blob(missing[0])]))
    with pytest.raises(ContentError, match="blobs_missing"):
        harness.intake.finish(found.digest)
    _, left = harness.intake.begin(found.data)
    assert left == missing[1:]
    for digest in left:
        harness.intake.blob(found.digest, digest, iter([found.blob(digest)]))
    assert harness.intake.finish(found.digest).state == "published"
    assert harness.intake.finish(found.digest).state == "published", "finishing twice is no error"
    assert harness.intake.begin(found.data)[1] == []


def test_a_blob_is_believed_only_if_its_bytes_are_its_name(harness: Harness, bundle: Path) -> None:
    found = read_bundle(bundle)
    _, missing = harness.intake.begin(found.data)
    first, good = missing[0], found.blob(missing[0])
    for content, code in (
        (b"\x00" * len(good), "hash_mismatch"),
        (good[:-1], "hash_mismatch"),
        (good + b"x", "oversized"),
    ):
        with pytest.raises(ContentError) as caught:
            harness.intake.blob(found.digest, first, iter([content]))
        assert caught.value.code == code
    with pytest.raises(ContentError) as caught:
        harness.intake.blob(found.digest, "f" * 64, iter([b"x"]))
    assert caught.value.code == "not_in_manifest"
    with pytest.raises(NotFoundError, match="unknown_release"):
        harness.intake.blob("e" * 64, first, iter([good]))
    assert harness.blobs.content == {}


def test_a_published_name_never_gets_other_content(harness: Harness, tmp_path: Path) -> None:
    write_bundle(tmp_path / "one", "v1", seed=1)
    write_bundle(tmp_path / "two", "v1", seed=2)
    harness.publish(tmp_path / "one")
    with pytest.raises(ConflictError, match="release_exists"):
        harness.publish(tmp_path / "two")


def test_an_unfinished_upload_gives_way_to_another_of_its_name(harness: Harness, tmp_path: Path) -> None:
    write_bundle(tmp_path / "one", "v1", seed=1)
    write_bundle(tmp_path / "two", "v1", seed=2)
    harness.intake.begin(read_bundle(tmp_path / "one").data)
    digest = harness.publish(tmp_path / "two")
    assert [release.digest for release in harness.people.releases()] == [digest]


def test_the_release_on_the_broker_is_the_manifest_in_an_envelope(harness: Harness, bundle: Path) -> None:
    digest = harness.publish(bundle)
    harness.settle()
    envelope = harness.broker.retained[TOPICS.topic(wt.RELEASE, digest=digest)]
    policy = Policy(insecure_unsigned=True)
    payload = open_envelope(envelope, "release", policy, wt.RELEASE.size_bytes_max)
    assert payload == (bundle / "manifest.json").read_bytes()
    blobs = {topic.rsplit("/", 1)[1]: p for topic, p in harness.broker.retained.items() if "/blob/" in topic}
    assert blobs.keys() == read_bundle(bundle).places.keys()
    assert all(hashlib.sha256(content).hexdigest() == name for name, content in blobs.items())


def test_what_two_releases_share_is_published_once(harness: Harness, tmp_path: Path) -> None:
    for seed, release in ((1, "v1"), (2, "v2")):
        write_bundle(tmp_path / release, release, seed=seed, size_bytes=64 * 1024, shared_bytes=32 * 1024)
        harness.publish(tmp_path / release)
        harness.settle()
    topics = [topic for topic, _ in harness.broker.log if "/blob/" in topic]
    assert len(topics) == len(set(topics))


def test_a_blob_that_the_disk_lost_is_named_and_can_be_uploaded_again(harness: Harness, bundle: Path) -> None:
    found = read_bundle(bundle)
    harness.publish(bundle)
    lost = min(found.places)
    del harness.blobs.content[lost]
    harness.settle()
    assert TOPICS.topic(wt.BLOB, digest=lost) not in harness.broker.retained
    assert TOPICS.topic(wt.RELEASE, digest=found.digest) in harness.broker.retained
    assert harness.intake.begin(found.data)[1] == [lost]
    harness.publish(bundle)
    harness.settle()
    assert TOPICS.topic(wt.BLOB, digest=lost) in harness.broker.retained


def test_blobs_on_disk_are_whole_or_absent(tmp_path: Path) -> None:
    blobs = BlobFiles(tmp_path)
    content = os.urandom(5000)
    digest = hashlib.sha256(content).hexdigest()

    def breaks() -> Iterator[bytes]:
        yield content[:2500]
        raise OSError(5, "the connection ended")

    with pytest.raises(OSError, match="connection"):
        blobs.put(digest, breaks(), 10_000)
    assert blobs.present([digest]) == set()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert blobs.put(digest, iter([content[:100], content[100:]]), 5000) == 5000
    blobs.settle([digest])
    assert blobs.read(digest) == content
    assert (tmp_path / digest[:2] / digest).read_bytes() == content
    with pytest.raises(ContentError) as caught:
        blobs.put("0" * 64, iter([content]), 4999)
    assert caught.value.code == "oversized"


def test_a_blob_that_rotted_on_disk_is_never_given_out(tmp_path: Path) -> None:
    blobs = BlobFiles(tmp_path)
    digest = hashlib.sha256(b"good").hexdigest()
    blobs.put(digest, iter([b"good"]), 10)
    (tmp_path / digest[:2] / digest).write_bytes(b"gone")
    with pytest.raises(ContentError, match="hash_mismatch"):
        blobs.read(digest)
    with pytest.raises(ContentError, match="blob_lost"):
        blobs.read("0" * 64)


def test_what_an_interrupted_upload_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / ".part-1234").write_bytes(b"half")
    BlobFiles(tmp_path)
    assert list((tmp_path / "aa").iterdir()) == []


def test_a_ready_payload_that_was_signed_anew_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    files = PayloadFiles(tmp_path)
    files.write("ro-1", b"first")
    before = Path(files.path("ro-1")).stat().st_ino
    files.write("ro-1", b"first")
    assert Path(files.path("ro-1")).stat().st_ino == before, "the same again writes nothing"
    files.write("ro-1", b"second")
    assert Path(files.path("ro-1")).read_bytes() == b"second"
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_fields_of_a_manifest_keep_the_digest(harness: Harness, bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["from_the_future"] = {"x": 1}
    path.write_bytes(msgspec.json.encode(manifest))
    digest = harness.publish(bundle)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_connection_counts_as_unread_from_its_first_moment() -> None:
    """Between the connection and the conductor's next look `health` once said that all was well."""
    harness, syncing = Harness(), list[bool]()
    for _connection in range(2):
        syncing.append(harness.publisher.syncing)
        harness.settle()
        syncing.append(harness.publisher.syncing)
        harness.broker.forget_everything()
    assert syncing == [True, False, True, False]
