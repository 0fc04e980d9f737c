"""Every row of `verify` holds for an honest release, and fails for what it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from onnx import TensorProto

from fleet.adapters.key_files import verify as check
from fleet.verification import Asked, verify
from fleet.verify import Outcome, Row, holds
from fleet.verify_content import fits
from tests.fleet.verifying import (
    INGREDIENTS,
    LITE,
    ONNX,
    PLACES,
    Release,
    alter,
    assert_only,
    blob_of,
    have_no_envelope,
    onnx_file,
    rows_of,
)
from tests.keys import ORDER, RELEASE, RELEASE_2, ROOT_1, ROOT_2, Key, root_of, root_sha256, sealed_root
from wire import trust
from wire.bundle import TensorSpec
from wire.chunks import digest
from wire.codec import encode

OK, FAILED = Outcome.OK, Outcome.FAILED
NOT_RECORDED, NOT_CHECKED = Outcome.NOT_RECORDED, Outcome.NOT_CHECKED
FLAGS = {kind: f"--{kind}" for kind in INGREDIENTS}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
def test_an_honest_release_holds_in_every_row(tmp_path: Path, compress: bool) -> None:
    release = Release(tmp_path, compress=compress)
    pin = root_sha256(release.chain[0])
    rows = rows_of(release, Asked(subject="net@v1", given=release.given, root_sha256=pin))
    held = {name for name, row in rows.items() if row.outcome is OK}
    assert held == {
        "roots", "signature", "manifest", f"content {ONNX}", f"model {ONNX}", f"content {LITE}",
        f"model {LITE}", "content validation", "recorded model", "recorded calibration",
        "recorded validation", "recorded sla", "recorded files", "recorded tools", "recorded options",
        *(f"same {kind}" for kind in INGREDIENTS),
    }  # fmt: skip
    assert {name: row.outcome for name, row in rows.items() if name not in held} == {
        "deltas": NOT_CHECKED, "broker": NOT_CHECKED,
    }  # fmt: skip
    assert f"from the pinned root {pin[:12]}" in rows["roots"].reason
    assert ("of them compressed" in rows["content validation"].reason) == compress
    assert RELEASE.keyid[:12] in rows["signature"].reason


# --- trust -----------------------------------------------------------------------------------------


def rotated(*generations: tuple[Key, Key]) -> tuple[list[bytes], list[bytes]]:
    """A chain: of each generation its root key and its release key; sealed roots, and what they say."""
    roots = [
        root_of(i, root=[key], release=[release]) for i, (key, release) in enumerate(generations, start=1)
    ]
    keys = [key for key, _ in generations]
    sealed = [
        sealed_root(root, *({keys[max(0, i - 1)], keys[i]}))  # by the one before and its own
        for i, root in enumerate(roots)
    ]
    return sealed, [encode(root) for root in roots]


CHAIN, PAYLOADS = rotated((ROOT_1, RELEASE_2), (ROOT_2, RELEASE_2), (Key("root-9"), RELEASE))


def test_a_rotated_chain_is_followed_from_any_pinned_root(release: Release) -> None:
    release.sealed_roots = CHAIN
    own = rows_of(release)["roots"]
    assert "from the chain's own beginning" in own.reason
    assert f"--root-sha256 {digest(PAYLOADS[0])}" in own.reason
    for number, payload in enumerate(PAYLOADS, start=1):
        rows = rows_of(release, Asked(subject="s", root_sha256=digest(payload)))
        assert rows["roots"].outcome is OK
        assert ("root 3 stands" if number == 3 else f"roots {number} to 3") in rows["roots"].reason
        assert "under root 3" in rows["signature"].reason


def break_chain(release: Release) -> None:
    # The third root is signed by its own key alone.
    third = root_of(3, root=[Key("root-9")], release=[RELEASE])
    release.sealed_roots = [*CHAIN[:2], sealed_root(third, Key("root-9"))]


def leave_a_root_out(release: Release) -> None:
    release.sealed_roots = [CHAIN[0], CHAIN[2]]


def damage_a_root(release: Release) -> None:
    release.sealed_roots = [CHAIN[0], b"{}"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_chain, "after root 2: no root key of root 2 signed this"),
        (leave_a_root_out, "root 3 cannot follow root 1"),
        (damage_a_root, "after root 1: not a signed envelope"),
    ],
)
def test_a_broken_chain_is_believed_nowhere(
    release: Release, spoil: Callable[[Release], None], words: str
) -> None:
    spoil(release)
    rows = rows_of(release)
    assert rows["roots"].outcome is FAILED
    assert words in rows["roots"].reason
    assert rows["signature"].outcome is FAILED
    assert "no root is believed" in rows["signature"].reason


def test_a_pin_that_no_root_has_fails_whatever_the_chain_says_of_itself(release: Release) -> None:
    rows = rows_of(release, Asked(subject="s", root_sha256="ab" * 32))
    assert rows["roots"].outcome is FAILED
    assert "another fleet's chain" in rows["roots"].reason
    assert rows["signature"].outcome is FAILED
    release.sealed_roots = []
    assert rows_of(release, Asked(subject="s", root_sha256="ab" * 32))["roots"].outcome is FAILED


def sign_with_order(release: Release) -> None:
    release.sealed = trust.seal("release", release.data, [ORDER])


def sign_with_retired(release: Release) -> None:
    release.sealed_roots = CHAIN
    release.sealed = trust.seal("release", release.data, [RELEASE_2])


def sign_with_stranger(release: Release) -> None:
    release.sealed = trust.seal("release", release.data, [Key("mallory")])


def sign_another_kind(release: Release) -> None:
    release.sealed = trust.seal("desired", release.data, [RELEASE])


def sign_another_manifest(release: Release) -> None:
    release.sealed = trust.seal("release", release.data + b" ", [RELEASE])


def sign_not(release: Release) -> None:
    release.sealed = trust.seal("release", release.data)


def garble(release: Release) -> None:
    release.sealed = b"\xff{"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (sign_with_order, f"order key {ORDER.keyid[:12]} of root 1 did"),
        (sign_with_retired, f"release key {RELEASE_2.keyid[:12]} of root 2 did"),
        (sign_with_stranger, "no release key of root 1 signed this [bad_signature]"),
        (sign_another_kind, "wrong_type"),
        (sign_another_manifest, "another manifest"),
        (sign_not, "nobody signed it [unsigned]"),
        (have_no_envelope, "it carries none [release_unsigned]"),
        (garble, "malformed"),
    ],
)
def test_a_release_is_signed_by_its_role_or_fails(
    release: Release, spoil: Callable[[Release], None], words: str
) -> None:
    spoil(release)
    assert_only(rows_of(release), "signature", words)


def test_a_threshold_of_release_keys_must_be_met(release: Release) -> None:
    root = root_of(release=[RELEASE, RELEASE_2])
    release.chain = [structs.replace(root, release=structs.replace(root.release, threshold=2))]
    release.hold()
    assert_only(rows_of(release), "signature", "1 release keys of root 1 signed this, 2 must")
    release.signers = (RELEASE, RELEASE_2)
    release.hold()
    assert rows_of(release)["signature"].outcome is OK


def test_a_registry_without_keys_fails_for_its_releases_are_unsigned(release: Release) -> None:
    release.sealed_roots = []
    sign_not(release)
    rows = rows_of(release)
    assert rows["roots"].outcome is NOT_CHECKED
    assert_only(rows, "signature", "unsigned")


# --- manifest --------------------------------------------------------------------------------------


def test_a_manifest_of_other_bytes_is_not_the_release(release: Release) -> None:
    release.data += b" "
    rows = rows_of(release)
    assert {name for name, row in rows.items() if row.outcome is FAILED} == {"manifest", "signature"}
    assert "these are other bytes" in rows["manifest"].reason
    assert rows["content"].outcome is NOT_CHECKED


@pytest.mark.parametrize(("field", "value"), [("model", "other"), ("release", "v2")])
def test_a_manifest_under_another_name_fails(release: Release, field: str, value: str) -> None:
    release.named = structs.replace(release.named, **{field: value})
    assert_only(rows_of(release), "manifest", "it is of net@v1")


def test_a_manifest_that_contradicts_itself_fails(release: Release) -> None:
    release.value = structs.replace(release.value, variants=release.value.variants * 2)
    release.hold()
    assert_only(rows_of(release), "manifest", "manifest_incoherent")


# --- content ---------------------------------------------------------------------------------------


def remove(release: Release, blob: str) -> None:
    del release.blobs[blob]


def lengthen(release: Release, blob: str) -> None:
    release.blobs[blob] += b"more"


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(alter, "hash_mismatch"), (remove, "blob_lost"), (lengthen, "hash_mismatch")],
)
def test_every_chunk_counts(
    release: Release, path: str, spoil: Callable[[Release, str], None], words: str
) -> None:
    spoil(release, blob_of(release, path))
    rows = rows_of(release)
    assert_only(rows, f"content {PLACES[path]}", path, words)
    if path in {"a/model.onnx", "b/model.tflite"}:
        assert rows[f"model {PLACES[path]}"].outcome is NOT_CHECKED


def test_a_compressed_chunk_is_unpacked_and_counts(tmp_path: Path) -> None:
    release = Release(tmp_path, compress=True)
    alter(release, blob_of(release, "v/0.npz"))
    assert_only(rows_of(release), "content validation", "hash_mismatch")


@pytest.mark.parametrize("field", ["sha256", "size_bytes"])
def test_whole_chunks_that_make_another_file_fail(release: Release, field: str) -> None:
    shard = release.value.validation[0]
    chunks = shard.file.chunks
    other = {"sha256": "ab" * 32} if field == "sha256" else {"chunks": (chunks[0], chunks[0], *chunks[2:])}
    if field == "size_bytes":
        file = structs.replace(shard.file, chunks=other["chunks"])
    else:
        file = structs.replace(shard.file, sha256="ab" * 32)
    release.value = structs.replace(release.value, validation=(structs.replace(shard, file=file),))
    release.hold()
    assert_only(rows_of(release), "content validation", "v/0.npz has SHA-256")


def test_many_faults_are_counted_and_three_are_named(release: Release) -> None:
    shard = release.value.validation[0]
    shards = tuple(
        structs.replace(shard, file=structs.replace(shard.file, path=f"v/{i}.npz", sha256=f"{i}" * 64))
        for i in range(1, 6)
    )
    release.value = structs.replace(release.value, validation=shards)
    release.hold()
    assert_only(rows_of(release), "content validation", "of 5 files 5 are not whole", "v/3.npz", "and 2 more")


# --- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no model at all", "is no onnx model"),
        (onnx_file("z"), "takes no x"),
        (onnx_file(dtype=TensorProto.INT8), "takes x as int8, the manifest says float32"),
        (onnx_file(channels=5), "takes x of shape [?, 5, 2, 2], the manifest says [?, 3, 2, 2]"),
    ],
)
def test_a_model_that_is_another_than_is_said_fails(release: Release, content: bytes, words: str) -> None:
    release.replace_file("a/model.onnx", content)
    assert_only(rows_of(release), f"model {ONNX}", words)


def test_formats_are_not_mixed_up(release: Release) -> None:
    release.replace_file("a/model.onnx", release.contents["b/model.tflite"])
    assert_only(rows_of(release), f"model {ONNX}", "is no onnx model")
    release.replace_file("a/model.onnx", release.contents["a/model.onnx"])
    release.replace_file("b/model.tflite", release.contents["a/model.onnx"])
    assert_only(rows_of(release), f"model {LITE}", "is no tflite model")


def test_axes_are_those_of_the_manifest(release: Release) -> None:
    lite = structs.replace(release.value.variants[1], axes={"y": (0, 2, 3, 1)})
    release.value = structs.replace(release.value, variants=(release.value.variants[0], lite))
    release.hold()
    assert_only(rows_of(release), f"model {LITE}", "takes x of shape [1, 2, 2, 3]")


@pytest.mark.parametrize(
    ("side", "words"), [("inputs", "takes no x"), ("outputs", "gives no y")]
)  # fmt: skip
def test_both_sides_are_compared(release: Release, side: str, words: str) -> None:
    (spec,) = getattr(release.value, side)
    release.value = structs.replace(release.value, **{side: (structs.replace(spec, name="q"),)})
    variants = tuple(structs.replace(one, axes={}) for one in release.value.variants)
    release.value = structs.replace(release.value, variants=variants)
    release.hold()
    rows = rows_of(release)
    assert {name for name, row in rows.items() if row.outcome is FAILED} == {f"model {ONNX}", f"model {LITE}"}
    assert words.replace(f"no {spec.name}", "no q") in rows[f"model {ONNX}"].reason
    if side == "inputs":
        assert "takes x, which the manifest does not name" in rows[f"model {ONNX}"].reason


def test_a_runtime_of_the_future_is_not_checked(release: Release) -> None:
    other = structs.replace(release.value.variants[0], runtime="hovercraft", id="hovercraft/eels")
    release.value = structs.replace(release.value, variants=(other,))
    release.hold()
    row = rows_of(release)["model hovercraft/eels"]
    assert (row.outcome, "no format of hovercraft" in row.reason) == (NOT_CHECKED, True)


def test_integers_at_the_edge_of_a_tflite_file_are_the_manifests_floats(release: Release) -> None:
    x = structs.replace(release.value.inputs[0], dtype="int8")
    release.value = structs.replace(release.value, inputs=(x,))
    release.hold()
    rows = rows_of(release)
    assert {name for name, row in rows.items() if row.outcome is FAILED} == {f"model {ONNX}", f"model {LITE}"}


_shapes = st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@settings(max_examples=200)
@given(_shapes, st.randoms())
def test_a_shape_fits_itself_in_any_axes(said: tuple[int | None, ...], rng: object) -> None:
    order = list(range(len(said)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    held = tuple(said[axis] for axis in order)
    assert fits(said, held, tuple(order), "onnx")
    assert fits(said, tuple(7 if size is None else size for size in held), tuple(order), "onnx")
    assert not fits(said, (*held, 1), tuple(order), "onnx")
    assert not fits((*said, 1), held, tuple(order), "onnx")
    for place, size in enumerate(held):
        other = (*held[:place], (size or 7) + 1, *held[place + 1 :])
        free = size is None
        assert fits(said, other, tuple(order), "onnx") == free
        # A .tflite file's first axis, wherever it lies, is as long as its batch.
        assert fits(said, other, tuple(order), "tflite") == (free or order[place] == 0)


def test_a_shape_that_nobody_knows_fits() -> None:
    assert fits((), (1, 2), None, "onnx")
    assert fits((1, 2), (), None, "onnx")


# --- the verdict -----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.sampled_from(Outcome), max_size=6))
def test_the_verdict_fails_closed(outcomes: list[Outcome]) -> None:
    rows = [Row(check=str(i), outcome=one, reason="") for i, one in enumerate(outcomes)]
    assert holds(rows) == (outcomes.count(OK) > 0 and outcomes.count(FAILED) == 0)


PARTS = ("manifest", "envelope", "root", "blob")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PARTS), st.integers(0, 2**30), st.integers(1, 255), st.booleans())
def test_no_changed_byte_anywhere_is_passed_over(
    release: Release, part: str, place: int, by: int, cut: bool
) -> None:
    """Whatever holds after a byte was changed or the rest cut off says the same as before."""

    def spoilt(content: bytes) -> bytes:
        at = place % len(content)
        return content[:at] if cut else content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]

    pin = root_sha256(release.chain[0])
    release.hold()
    before, sealed, roots, blobs = release.data, release.sealed, release.sealed_roots, release.blobs
    assert isinstance(sealed, bytes)
    if part == "manifest":
        release.data = spoilt(before)
    elif part == "envelope":
        release.sealed = spoilt(sealed)
    elif part == "root":
        release.sealed_roots = [spoilt(roots[0])]
    else:
        name = sorted(blobs)[place % len(blobs)]
        release.blobs = {**blobs, name: spoilt(blobs[name])}
    try:
        found = verify(release, Asked(subject="s", root_sha256=pin), check)
    finally:
        release.blobs = blobs
    if part in {"manifest", "blob"}:
        assert not found.holds
    elif found.holds:
        # A signature in base64 has bits that mean nothing, and a root's key id may be of nobody.
        kind, now = ("release", release.sealed) if part == "envelope" else ("root", release.sealed_roots[0])
        assert isinstance(now, bytes)
        was = sealed if part == "envelope" else roots[0]
        assert trust.unwrap(now, kind, 10**7) == trust.unwrap(was, kind, 10**7)


def test_an_empty_file_is_no_model(release: Release) -> None:
    empty = structs.replace(release.value.variants[0].files[0], size_bytes=0, sha256=digest(b""), chunks=())
    first = structs.replace(release.value.variants[0], files=(empty,))
    release.value = structs.replace(release.value, variants=(first, release.value.variants[1]))
    release.hold()
    rows = rows_of(release)
    assert rows[f"content {ONNX}"].outcome is OK
    assert_only(rows, f"model {ONNX}", "is no onnx model")


def test_inputs_without_a_shape_are_compared_by_name_and_type(release: Release) -> None:
    bare = TensorSpec(name="y", dtype="float32", shape=())
    lite = structs.replace(release.value.variants[1], axes={"x": (0, 2, 3, 1)})
    variants = (release.value.variants[0], lite)
    release.value = structs.replace(release.value, outputs=(bare,), variants=variants)
    release.hold()
    assert FAILED not in {row.outcome for row in rows_of(release).values()}
