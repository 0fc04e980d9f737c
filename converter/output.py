"""The directory that a conversion leaves behind: whole, or not at all.

For: refusing a place that holds something else, writing into `DIR.part`, and renaming.
Not for: what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from converter.errors import InputError

_OURS = frozenset({"manifest.json", "candidates.json", "report.html", "variants", "validation"})


def require_writable(directory: Path, *, force: bool) -> None:
    """Asks before any work whether the result can be written.

    Args:
        directory: absolute.
        force: whether an earlier bundle may be replaced.

    Raises:
        InputError: `output_not_empty` (without `force`), `output_foreign` (with it, where something lies
            that no conversion wrote), `output_unwritable`.
    """
    if not directory.name or (directory.exists() and not directory.is_dir()):
        raise InputError(
            "output_unwritable", f"{directory} is no place for a bundle; name a directory with --output"
        )
    above = next(place for place in directory.parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            "output_unwritable", f"nothing can be made in {above}; name another place with --output"
        )
    present = _entries(directory)
    if present and not force:
        raise InputError(
            "output_not_empty", f"{directory} is not empty; name another place or replace it with --force"
        )
    for place in (directory, _part(directory)):
        foreign = sorted(_entries(place) - _OURS)
        if foreign:
            raise InputError(
                "output_foreign",
                f"{place} holds {', '.join(foreign[:5])}, which no conversion wrote; it is not replaced",
            )


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Puts exactly these files there, replacing what an earlier conversion left.

    Args:
        directory: as `require_writable` allowed it.
        files: content by path relative to it.

    Raises:
        InputError: `output_unwritable`; nothing half-written stays.
    """
    part = _part(directory)
    try:
        shutil.rmtree(part, ignore_errors=True)
        for path, content in files.items():
            place = part / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        _swap(part, directory)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(
            "output_unwritable",
            f"{directory} cannot be written: {error.strerror or error}; check the place and its free space",
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Puts one file there, whole or not at all.

    Raises:
        InputError: `output_unwritable`.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            "output_unwritable",
            f"{path} cannot be written: {error.strerror or error}; check the place and its free space",
        ) from error


def _swap(part: Path, directory: Path) -> None:
    """The old one steps aside until the new one is in its place."""
    if not directory.exists():
        part.rename(directory)
        return
    old = directory.with_name(f"{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    part.rename(directory)
    shutil.rmtree(old)


def _part(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.part")


def _entries(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise InputError("output_unwritable", f"{directory} cannot be read: {error.strerror}") from error
