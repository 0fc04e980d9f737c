"""The output directory is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import InputError
from converter.output import require_writable, write

FILES = {"manifest.json": b"{}", "variants/a/model.onnx": b"onnx"}


def _content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_what_is_written_lies_there_and_nothing_beside(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "bundle", FILES)
    assert _content(tmp_path) == {f"deep/bundle/{path}": content for path, content in FILES.items()}


def test_an_earlier_bundle_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "bundle", FILES | {"validation/shard-0000.npz": b"old"})
    write(tmp_path / "bundle", FILES)
    assert _content(tmp_path / "bundle") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_a_killed_conversion_left_is_cleared(tmp_path: Path) -> None:
    part = tmp_path / "bundle.part" / "variants"
    part.mkdir(parents=True)
    (part / "half").write_bytes(b"half")
    require_writable(tmp_path / "bundle", force=False)
    write(tmp_path / "bundle", FILES)
    assert _content(tmp_path) == {f"bundle/{path}": content for path, content in FILES.items()}


def test_a_failure_leaves_the_earlier_bundle_and_nothing_half_written(tmp_path: Path) -> None:
    write(tmp_path / "bundle", FILES)
    impossible = {"candidates.json": b"{}", "candidates.json/below": b"a file is no folder"}
    with pytest.raises(InputError, match="cannot be written") as caught:
        write(tmp_path / "bundle", impossible)
    assert caught.value.code == "output_unwritable"
    assert _content(tmp_path) == {f"bundle/{path}": content for path, content in FILES.items()}


def test_places_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    foreign = tmp_path / "photos.part"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_text("mine")
    full = tmp_path / "full"
    write(full, FILES)
    for place, force, code in (
        (file, True, "output_unwritable"),
        (file / "below", True, "output_unwritable"),
        (tmp_path / "photos", True, "output_foreign"),
        (full, False, "output_not_empty"),
    ):
        with pytest.raises(InputError) as caught:
            require_writable(place, force=force)
        assert caught.value.code == code
    require_writable(full, force=True)
    assert (foreign / "holiday.jpg").read_text() == "mine"
