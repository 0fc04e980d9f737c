"""The bundles that the integration tests use are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.integration.bundles import digest_of, make_bundle, model_bytes
from wire import bundle, chunks, codec


def test_a_bundle_is_coherent_and_its_files_are_what_the_manifest_says(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "b", ballast_bytes=200_000)
    raw = (tmp_path / "b" / "manifest.json").read_bytes()
    assert codec.decode(raw, bundle.Manifest, bundle.MANIFEST_BYTES_MAX) == manifest
    for file in manifest.all_files():
        data = (tmp_path / "b" / file.path).read_bytes()
        assert chunks.digest(data) == file.sha256
        assert sum(chunk.size_bytes for chunk in file.chunks) == len(data)
    assert manifest.variants[0].size_bytes > 200_000
    assert digest_of(tmp_path / "b") == chunks.digest(raw)


def test_two_seeds_are_two_models() -> None:
    assert model_bytes(1) != model_bytes(2)
    assert model_bytes(1) == model_bytes(1)


def test_garbage_does_not_load() -> None:
    with pytest.raises(Exception, match=r"(?i)protobuf|parse|load"):
        ort.InferenceSession(model_bytes(1, harm="garbage"), providers=["CPUExecutionProvider"])


def test_the_model_that_hangs_loads() -> None:
    session = ort.InferenceSession(model_bytes(1, harm="hang"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", 16]


def test_the_wrong_model_answers_otherwise() -> None:
    samples = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    answers = []
    for model in (model_bytes(1), model_bytes(2, harm="wrong")):
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"x": samples})[0].argmax(axis=1))
    assert (answers[0] == answers[1]).mean() < 0.8
