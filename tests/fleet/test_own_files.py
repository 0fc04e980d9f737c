"""Files of the registry's own that a damaged disk, or somebody on the machine, made large."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.adapters.blob_files import BlobFiles
from fleet.adapters.keychain import load_chain
from fleet.keys import KeysError
from wire.errors import ContentError

LARGE_BYTES = 512 * 1024 * 1024
DIGEST = "ab" * 32


def large(path: Path) -> None:
    """A hole; it takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)


@pytest.fixture
def sparing() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LARGE_BYTES // 16


@pytest.mark.usefixtures("sparing")
def test_a_blob_that_grew_is_damaged(tmp_path: Path) -> None:
    blobs = BlobFiles(tmp_path)
    large(tmp_path / blobs.relative_path(DIGEST))
    with pytest.raises(ContentError) as caught:
        blobs.read(DIGEST)
    assert caught.value.code == "hash_mismatch"


@pytest.mark.usefixtures("sparing")
def test_a_root_that_grew_breaks_the_chain(tmp_path: Path) -> None:
    large(tmp_path / "root-1.json")
    with pytest.raises(KeysError) as caught:
        load_chain(tmp_path)
    assert caught.value.code == "chain_broken"
