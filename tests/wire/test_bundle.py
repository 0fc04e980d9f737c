"""A manifest is coherent or refused; content is cut in one way."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.samples import DIGEST, MANIFEST, OTHER, file, variant
from wire import bundle, chunks, codec
from wire.errors import ContentError, LimitsError, WireError
from wire.sla import AccuracyLimit, Limits

V1, V2, TWIN = MANIFEST.variants


def bent(**changes: object) -> bundle.Manifest:
    return msgspec.structs.replace(MANIFEST, **changes)


def test_the_sample_is_coherent() -> None:
    assert bundle.check(MANIFEST) is MANIFEST


def test_a_variant_is_found_by_id() -> None:
    assert MANIFEST.variant(V2.id) is V2
    assert MANIFEST.variant("onnxruntime/none") is None


def test_a_variant_weighs_what_its_files_weigh() -> None:
    two = msgspec.structs.replace(V1, files=(file("a.onnx", 10), file("b.bin", 32, OTHER)))
    assert two.size_bytes == 42


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (bent(variants=(V1, V1)), "same id"),
        (bent(variants=(msgspec.structs.replace(V1, model_path="missing.onnx"),)), "missing.onnx"),
        (bent(variants=(msgspec.structs.replace(V1, files=V1.files * 2),)), "twice"),
        (
            bent(variants=(V1, msgspec.structs.replace(V2, files=(file(V1.model_path, sha256=OTHER),
                                                                   *V2.files)))),
            "two contents",
        ),
        (
            bent(variants=(msgspec.structs.replace(
                V1, files=(msgspec.structs.replace(V1.files[0], size_bytes=11),)),)),
            "add up",
        ),
        (bent(data={"sound": bundle.InputData()}), "sound"),
        (
            bent(data={"image": bundle.InputData(
                preprocessing=(bundle.Normalize(mean=(1.0,), std=(0.0,)),))}),
            "none of them zero",
        ),
        (
            bent(data={"image": bundle.InputData(
                preprocessing=(bundle.Normalize(mean=(1.0, 2.0), std=(1.0,)),))}),
            "as many std",
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(manifest: bundle.Manifest, words: str) -> None:
    with pytest.raises(ContentError, match=words) as caught:
        bundle.check(manifest)
    assert caught.value.code == "manifest_incoherent"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {"sound": (0, 2, 1)}}, "sound, which is no input or output"),
        ({"axes": {"image": (0, 2, 2, 1)}}, r"no permutation: \[0, 2, 2, 1\]"),
        ({"axes": {"image": (1, 2, 3, 4)}}, "no permutation"),
        ({"axes": {"image": (0, 2, 1)}}, "are 3, the tensor has 4"),
        ({"axes": {"logits": (0, 2, 1)}}, "are 3, the tensor has 2"),
        ({"twin_of": TWIN.id}, "its own twin"),
        ({"twin_of": None}, "no twin that it is of"),
        (
            {"parity": bundle.Parity(operators=9, equal=7, one_step=2, worse=1, outputs_equal=1.0)},
            "10 operators of 9",
        ),
    ],
)
def test_a_twin_that_contradicts_itself_is_refused(changes: dict[str, object], words: str) -> None:
    twin = msgspec.structs.replace(TWIN, **changes)
    with pytest.raises(ContentError, match=words) as caught:
        bundle.check(bent(variants=(V1, twin)))
    assert caught.value.code == "manifest_incoherent"


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": {"image": (3, 2, 1, 0), "logits": (1, 0)}},
        {"twin_of": V1.id},
        {"parity": None, "twin_of": None},
        {"parity": bundle.Parity(operators=9, equal=7, one_step=1, worse=1, outputs_equal=1.0)},
    ],
)
def test_a_twin_may_be_named_although_the_release_leaves_it_out(changes: dict[str, object]) -> None:
    manifest = bent(variants=(V1, msgspec.structs.replace(TWIN, **changes)))
    assert bundle.check(manifest) is manifest


def test_axes_of_an_output_of_unknown_shape_are_believed() -> None:
    unknown = bundle.TensorSpec(name="boxes", dtype="float32", shape=())
    twin = msgspec.structs.replace(TWIN, axes={"boxes": (0, 2, 1)})
    manifest = bent(outputs=(*MANIFEST.outputs, unknown), variants=(V1, twin))
    assert bundle.check(manifest) is manifest


@pytest.mark.parametrize("wrong", ["[0,2,3,16]", "[0]", "[0,-1]", '["0","1"]'])
def test_axes_that_are_no_axes_are_refused_by_name(wrong: str) -> None:
    raw = codec.encode(MANIFEST).replace(b"[0,2,3,1]", wrong.encode())
    with pytest.raises(WireError, match=r"axes|\.\.\.") as caught:
        codec.decode(raw, bundle.Manifest, 100_000)
    assert caught.value.code == "invalid_field"


def test_a_manifest_of_before_the_twins_is_read_as_one_without() -> None:
    old = msgspec.to_builtins(V1)
    for name in ("axes", "twin_of", "parity"):
        del old[name]
    assert msgspec.convert(old, bundle.Variant) == V1


def test_a_manifest_whose_sla_cannot_be_judged_is_refused() -> None:
    with pytest.raises(LimitsError):
        bundle.check(bent(sla=Limits(accuracy=AccuracyLimit())))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        ".hidden",
        "a/.b",
        "",
        "a\\b",
        "a b",
        "a\n",
        "a/",
        "x/" * 9 + "y",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    raw = codec.encode(MANIFEST).replace(V1.model_path.encode(), msgspec.json.encode(path)[1:-1])
    with pytest.raises(WireError, match="path") as caught:
        codec.decode(raw, bundle.Manifest, 100_000)
    assert caught.value.code == "invalid_field"


def test_an_unknown_limit_in_a_manifest_is_refused() -> None:
    raw = codec.encode(MANIFEST).replace(b'"latency_ms_p95_max"', b'"latency_of_tomorrow"')
    with pytest.raises(WireError, match="latency_of_tomorrow"):
        codec.decode(raw, bundle.Manifest, 100_000)


@given(st.integers(0, 5000), st.lists(st.integers(-10, 6000), max_size=30), st.integers(1, 700))
def test_spans_cover_the_file_in_order_and_keep_the_cap(size: int, marks: list[int], cap: int) -> None:
    spans = chunks.cut(size, marks, cap)
    position = 0
    for span in spans:
        assert span.offset == position
        assert 0 < span.size_bytes <= cap
        position += span.size_bytes
    assert position == size


@given(st.integers(0, 400), st.integers(65, 300), st.integers(0, 300))
def test_a_tensor_larger_than_a_chunk_starts_its_own(before: int, tensor: int, after: int) -> None:
    cap = 64
    spans = chunks.cut(before + tensor + after, [before, before + tensor], cap)
    assert before in {span.offset for span in spans}


def test_a_change_in_front_does_not_move_the_chunks_behind() -> None:
    tensor = bytes(range(256)) * 2
    names = []
    for front in (b"a" * 30, b"b" * 47):
        data = front + tensor
        spans = chunks.cut(len(data), [len(front)], 100)
        names.append([chunks.digest(piece) for piece in chunks.pieces(data, spans)])
    assert names[0][1:] == names[1][1:]
    assert names[0][0] != names[1][0]


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=5))
def test_pieces_put_together_are_the_file(data: bytes, marks: list[int]) -> None:
    spans = chunks.cut(len(data), marks, 100)
    assert b"".join(bytes(piece) for piece in chunks.pieces(data, spans)) == data


@pytest.mark.parametrize(("size", "cap"), [(-1, 10), (10, 0)])
def test_what_cannot_be_cut_is_refused(size: int, cap: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        chunks.cut(size, (), cap)


def test_the_names_of_a_shards_arrays() -> None:
    assert bundle.input_key("image") == "input/image"
    assert bundle.fp32_key("logits") == "fp32/logits"
    assert bundle.host_key("onnxruntime/x", "logits") == "host/onnxruntime/x/logits"
    assert bundle.LABELS_KEY == "labels"


def test_a_variant_with_no_file_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="files"):
        msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(variant("x"), files=())), bundle.Variant)


def test_the_digest_is_sha256() -> None:
    assert chunks.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert len(DIGEST) == 64
