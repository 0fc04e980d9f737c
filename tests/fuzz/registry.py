"""All targets, and the inputs that are kept in the repository.

For: one list, and reading and writing `tests/fuzz/corpus/TARGET/NAME`.
Not for: what a target does.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import (
    targets_fleet,
    targets_machine,
    targets_models,
    targets_state,
    targets_wire,
    targets_worker,
    targets_yaml,
)
from tests.fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX = 1_000_000
"""A repository is no place for a fuzzer's whole memory."""

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (
        targets_wire, targets_state, targets_worker, targets_yaml, targets_models, targets_machine,
        targets_fleet
    )
    for target in room.TARGETS
}  # fmt: skip


def kept(name: str) -> dict[str, bytes]:
    """The inputs in the repository, by file name."""
    folder = CORPUS / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def saved(target: Target) -> list[bytes]:
    """What a run begins with: what the code writes today, what it wrote once, and what ever failed."""
    return [*target.seeds().values(), *kept(target.name).values()]


def keep(name: str, file: str, data: bytes) -> Path:
    """Writes an input into the repository."""
    place = CORPUS / name / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return place
