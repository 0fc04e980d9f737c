"""Rows of deltas, provenance, the broker and a directory: each holds for what is honest and fails else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fleet.adapters.key_files import verify as check
from fleet.publish.directory import DirectoryHolder
from fleet.verification import Asked, verify
from fleet.verify import Outcome, Row
from fleet.verify_content import Retained, broker_rows
from tests.fleet.verifying import INGREDIENTS, PLACES, Release, alter, assert_only, have_no_envelope, rows_of
from wire.bundle import Chunk, Ingredient, Provenance
from wire.chunks import digest
from wire.deltas import DeltaHint, DeltaIndex
from wire.errors import ContentError

OK, FAILED = Outcome.OK, Outcome.FAILED
NOT_RECORDED, NOT_CHECKED = Outcome.NOT_RECORDED, Outcome.NOT_CHECKED


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


# --- deltas ----------------------------------------------------------------------------------------


def with_delta(release: Release) -> str:
    """Puts a delta beside the release; its one chunk."""
    delta = b"shorter way" * 100
    chunk = Chunk(sha256=digest(delta), size_bytes=len(delta))
    index = DeltaIndex(
        algorithm="tensor-1", delta_bytes=len(delta), delta_sha256=digest(delta), chunks=(chunk,)
    )
    hold_delta(release, index)
    release.blobs[chunk.sha256] = delta
    return chunk.sha256


def hold_delta(release: Release, index: DeltaIndex) -> None:
    raw = msgspec.json.encode(index)
    hint = DeltaHint(
        from_file_sha256="ab" * 32, to_file_sha256=release.value.variants[0].files[0].sha256,
        algorithm="tensor-1", index=digest(raw), index_bytes=len(raw), size_bytes=index.delta_bytes,
    )  # fmt: skip
    release.hints = [hint]
    release.blobs[hint.index] = raw


def test_a_whole_delta_holds_and_an_altered_one_fails(release: Release) -> None:
    chunk = with_delta(release)
    row = rows_of(release)["deltas"]
    assert (row.outcome, row.reason[:13]) == (OK, "1 delta whole")
    alter(release, chunk)
    assert_only(rows_of(release), "deltas", "hash_mismatch")


def test_an_index_that_says_otherwise_fails(release: Release) -> None:
    chunk = with_delta(release)
    content = release.blobs[chunk]
    index = DeltaIndex(
        algorithm="tensor-1", delta_bytes=len(content), delta_sha256="ab" * 32,
        chunks=(Chunk(sha256=chunk, size_bytes=len(content)),),
    )  # fmt: skip
    hold_delta(release, index)
    assert_only(rows_of(release), "deltas", "its chunks do not make it up")
    assert release.hints is not None
    hint = release.hints[0]
    junk = b"[]"
    release.blobs[digest(junk)] = junk
    release.hints = [structs.replace(hint, index=digest(junk), index_bytes=2)]
    assert_only(rows_of(release), "deltas", "index_malformed")
    release.hints = [structs.replace(hint, to_file_sha256="cd" * 32)]
    assert_only(rows_of(release), "deltas", "makes no file of this release")


# --- where it comes from ---------------------------------------------------------------------------


def test_a_bundle_of_an_earlier_converter_holds_and_says_what_it_lacks(release: Release) -> None:
    plain = Provenance(source_model_sha256=release.value.provenance.source_model_sha256)
    release.value = structs.replace(release.value, provenance=plain)
    release.hold()
    rows = rows_of(release, Asked(subject="s", given=release.given))
    lacking = {name for name, row in rows.items() if row.outcome is NOT_RECORDED}
    assert lacking == {
        *(f"recorded {one}" for one in ("calibration", "validation", "sla", "files", "tools", "options")),
        *(f"same {one}" for one in ("calibration", "validation", "sla", "search", "dataset")),
    }  # fmt: skip
    assert rows["same model"].outcome is OK
    release.given["model"].write_bytes(b"other")
    rows = rows_of(release, Asked(subject="s", given=release.given))
    assert_only(rows, "same model", "does not list them")


@pytest.mark.parametrize("kind", INGREDIENTS)
def test_another_file_than_the_one_that_went_in_fails(release: Release, kind: str) -> None:
    release.given[kind].write_bytes(b"another one")
    assert_only(
        rows_of(release, Asked(subject="s", given=release.given)), f"same {kind}", f"{kind}.bin has SHA"
    )


@pytest.mark.parametrize("kind", ["search", "dataset"])
def test_a_file_that_no_conversion_read_fails(release: Release, kind: str) -> None:
    origin = release.value.provenance
    files = tuple(one for one in origin.files if one.kind != kind)
    release.value = structs.replace(release.value, provenance=structs.replace(origin, files=files))
    release.hold()
    assert rows_of(release)[f"same {kind}"].reason == "the conversion read no such file"
    asked = Asked(subject="s", given={kind: release.given[kind]})
    assert_only(rows_of(release, asked), f"same {kind}", "read no such file")


@pytest.mark.parametrize("kind", ["model", "calibration", "validation", "sla"])
def test_a_list_of_files_that_contradicts_the_digests_fails(release: Release, kind: str) -> None:
    origin = release.value.provenance
    files = tuple(structs.replace(one, sha256="ab" * 32) if one.kind == kind else one for one in origin.files)
    release.value = structs.replace(release.value, provenance=structs.replace(origin, files=files))
    release.hold()
    assert_only(rows_of(release), "recorded files", f"another {kind}")


def with_weights_outside(release: Release, count: int = 2) -> list[Path]:
    """The model's weights lie beside it in files of their own."""
    paths = [release.folder / "weights" / f"w{i}.bin" for i in range(count)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode() * 9)
    origin = release.value.provenance
    model = release.given["model"]
    listed = tuple(
        Ingredient(kind="model_data", name=f"weights/{p.name}", size_bytes=1, sha256=digest(p.read_bytes()))
        for p in paths
    )
    whole = digest(model.read_bytes() + b"".join(p.read_bytes() for p in paths))
    origin = structs.replace(
        origin, files=origin.files + listed, source_model_sha256=whole,
        options={**origin.options, "model_data_files": str(count)},
    )  # fmt: skip
    release.value = structs.replace(release.value, provenance=origin)
    release.hold()
    return paths


def test_weights_outside_of_the_model_are_held_against_it_too(release: Release) -> None:
    paths = with_weights_outside(release)
    asked = Asked(subject="s", given={"model": release.given["model"]})
    assert rows_of(release, asked)["same model"].outcome is OK
    paths[1].write_bytes(b"other weights")
    assert_only(rows_of(release, asked), "same model", "weights/w1.bin has SHA-256")
    paths[1].unlink()
    assert_only(rows_of(release, asked), "same model", "weights/w1.bin is not beside")
    paths[1].symlink_to("/etc/hostname")
    assert_only(rows_of(release, asked), "same model", "weights/w1.bin is not beside")


def test_the_sum_of_a_model_s_files_counts_and_weights_that_are_not_listed_are_told(release: Release) -> None:
    with_weights_outside(release)
    origin = release.value.provenance
    asked = Asked(subject="s", given={"model": release.given["model"]})
    release.value = structs.replace(
        release.value, provenance=structs.replace(origin, source_model_sha256="ab" * 32)
    )
    release.hold()
    assert_only(rows_of(release, asked), "same model", "and not the model abab")
    files = tuple(one for one in origin.files if one.kind != "model_data")
    release.value = structs.replace(release.value, provenance=structs.replace(origin, files=files))
    release.hold()
    row = rows_of(release, asked)["same model"]
    assert (row.outcome, "more files than a release lists" in row.reason) == (NOT_CHECKED, True)


def test_a_given_file_that_cannot_be_read_is_bad_input(release: Release) -> None:
    with pytest.raises(ContentError, match="cannot be read") as refused:
        verify(release, Asked(subject="s", given={"sla": release.folder / "nowhere"}), check)
    assert refused.value.code == "file_missing"


# --- the broker ------------------------------------------------------------------------------------


def retaining(release: Release, spoil: Callable[[dict[str, str]], None] = lambda _: None) -> Asked:
    """What a broker retains to which the registry published, spoilt."""
    assert isinstance(release.sealed, bytes)
    held = {f"shallop/v1/blob/{blob}": blob for blob in release.blobs}
    held[f"shallop/v1/release/{digest(release.data)}"] = digest(release.sealed)
    held["shallop/v1/root/1"] = digest(release.sealed_roots[0])
    spoil(held)
    return Asked(subject="s", retained=lambda topics: {topic: held.get(topic) for topic in topics})


def test_a_broker_that_retains_what_the_registry_gives_out_holds(release: Release) -> None:
    rows = rows_of(release, retaining(release))
    assert (rows["broker"].outcome, rows["broker complete"].outcome) == (OK, OK)
    assert f"{2 + len(release.blobs)} messages" in rows["broker complete"].reason


@pytest.mark.parametrize("kind", ["blob", "release", "root"])
def test_a_broker_that_retains_other_content_fails(release: Release, kind: str) -> None:
    def spoil(held: dict[str, str]) -> None:
        topic = next(one for one in sorted(held) if f"/{kind}/" in one)
        held[topic] = "ab" * 32

    assert_only(rows_of(release, retaining(release, spoil)), "broker", f"shallop/v1/{kind}/")


@pytest.mark.parametrize("kind", ["blob", "root"])
def test_a_broker_that_lacks_a_message_of_a_retained_release_fails(release: Release, kind: str) -> None:
    def spoil(held: dict[str, str]) -> None:
        del held[next(one for one in sorted(held) if f"/{kind}/" in one)]

    assert_only(rows_of(release, retaining(release, spoil)), "broker complete", "1 are missing", f"/{kind}/")


def test_a_release_that_was_cleared_from_the_broker_is_no_failure(release: Release) -> None:
    def cleared(held: dict[str, str]) -> None:
        for topic in [one for one in held if "/root/" not in one]:
            del held[topic]

    rows = rows_of(release, retaining(release, cleared))
    assert (rows["broker"].outcome, rows["broker complete"].outcome) == (OK, NOT_CHECKED)
    rows = rows_of(release, retaining(release, lambda held: held.clear()))
    assert rows["broker"].outcome is NOT_CHECKED


def test_a_broker_that_does_not_answer_fails_and_one_needs_a_signed_release(release: Release) -> None:
    def refuse(_topics: object) -> Retained:
        raise ContentError("broker_unreachable", "nobody there")

    assert_only(rows_of(release, Asked(subject="s", retained=refuse)), "broker", "nobody there")
    asked = retaining(release)
    have_no_envelope(release)
    assert rows_of(release, asked)["broker"].outcome is NOT_CHECKED


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2", None])), st.sampled_from("abcdef")
)
def test_a_broker_s_rows_fail_exactly_where_something_differs(
    held: dict[str, str | None], release: str
) -> None:
    expected = dict.fromkeys("abcdef", "1")
    rows = broker_rows(release, expected, held)
    altered = any(held.get(topic) == "2" for topic in expected)
    absent = any(held.get(topic) is None for topic in expected)
    fails = altered or (absent and held.get(release) is not None)
    assert (FAILED in {row.outcome for row in rows}) == fails


# --- a directory -----------------------------------------------------------------------------------


def directory_rows(directory: Path, asked: Asked | None = None) -> dict[str, Row]:
    found = verify(DirectoryHolder(directory), asked or Asked(subject="d"), check)
    assert found.digest == digest((directory / "manifest.json").read_bytes())
    return {row.check: row for row in found.rows}


def test_a_directory_holds_without_a_signature_and_says_so(release: Release, tmp_path: Path) -> None:
    directory = release.write(tmp_path / "bundle")
    rows = directory_rows(directory, Asked(subject="d", given=release.given))
    assert {row.outcome for row in rows.values()} == {OK, NOT_CHECKED}
    assert {name for name, row in rows.items() if row.outcome is NOT_CHECKED} == {
        "signature", "deltas", "broker",
    }  # fmt: skip
    pinned = directory_rows(directory, Asked(subject="d", root_sha256="ab" * 32))
    assert_only(pinned, "roots", "a directory carries no roots")


def test_a_directory_of_compressed_chunks_holds(tmp_path: Path) -> None:
    release = Release(tmp_path, compress=True)
    rows = directory_rows(release.write(tmp_path / "bundle"))
    assert FAILED not in {row.outcome for row in rows.values()}


def _alter(path: Path) -> None:
    path.write_bytes(b"\0" + path.read_bytes()[1:])


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"!")


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_alter, "hash_mismatch"), (_longer, "size_mismatch"), (_shorter, "hash_mismatch"),
        (Path.unlink, "file_missing"), (_link, "outside_bundle"),
    ],
)  # fmt: skip
def test_every_file_of_a_directory_counts(
    release: Release, tmp_path: Path, path: str, spoil: Callable[[Path], None], code: str
) -> None:
    directory = release.write(tmp_path / "bundle")
    spoil(directory / path)
    assert_only(directory_rows(directory), f"content {PLACES[path]}", code)
