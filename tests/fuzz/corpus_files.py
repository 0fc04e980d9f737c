"""The inputs that are kept in the repository: `tests/fuzz/corpus/TARGET/NAME`.

For: reading and writing them.
Not for: what they are for (`tests.fuzz.registry`).
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX = 1_000_000
"""A repository is no place for a fuzzer's whole memory."""


def kept(name: str) -> dict[str, bytes]:
    """The inputs in the repository, by file name."""
    folder = CORPUS / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def keep(name: str, file: str, data: bytes) -> Path:
    """Writes an input into the repository."""
    place = CORPUS / name / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return place
