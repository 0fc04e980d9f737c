"""Files that a person holds against a release, hashed.

For: `shallop-fleet verify --source FILE` and its like, large files in blocks.
Not for: comparing (`fleet.verify_origin`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fleet.verify_origin import Given
from wire.bundle import Provenance
from wire.errors import ContentError

_BLOCK_BYTES = 1 << 20


def read_given(path: Path, kind: str, provenance: Provenance) -> Given:
    """A file's digests; of a model also those of the files of weights that the release lists, beside it.

    Raises:
        ContentError: `file_missing`: it cannot be read.
    """
    whole = hashlib.sha256()
    try:
        own = _hashed(path, whole)
    except OSError as error:
        raise ContentError(
            "file_missing", f"{path} cannot be read ({error.strerror}); check the path"
        ) from None
    if kind != "model":
        return Given(path=str(path), sha256=own)
    data: dict[str, str | None] = {}
    for one in provenance.files:
        if one.kind == "model_data":
            data[one.name] = _beside(path.parent, one.name, whole)
    return Given(path=str(path), sha256=own, data=data, whole=whole.hexdigest())


def _beside(folder: Path, name: str, whole: hashlib._Hash) -> str | None:
    """The digest of a file that a release names; None where it is not there, or leads out of the folder."""
    if "\0" in name:
        return None
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        return None
    try:
        return _hashed(place, whole)
    except OSError:
        return None


def _hashed(path: Path, whole: hashlib._Hash) -> str:
    own = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            own.update(block)
            whole.update(block)
    return own.hexdigest()
