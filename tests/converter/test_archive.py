"""What an `.npz` promises is looked at before memory is taken for it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converter.archive import DIRECTORY_BYTES_MAX, HEAD_BYTES_MAX, head, opened
from converter.dataset import Description, dtypes_of, read_samples
from converter.errors import InputError
from converter.model import signature
from tests.converter.builders import conv_net


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_samples(path, Description(), signature(conv_net()), labelled=False)
    return caught.value


def directory(path: Path, entries: int) -> None:
    """An archive whose list of files names one array again and again."""
    one = io.BytesIO()
    with zipfile.ZipFile(one, "w") as archive:
        archive.writestr("x.npy", b"")
    whole = one.getvalue()
    at, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    listed = whole[at:end] * entries
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(listed), at, 0)
    path.write_bytes(whole[:at] + listed + record)


def test_a_list_of_a_million_files_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    directory(path, 400_000)
    assert path.stat().st_size < 24 * 1024 * 1024
    tracemalloc.start()
    found = refusal(path)
    assert dtypes_of(path) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.code == "calibration_malformed"
    assert "its list of files" in str(found)
    assert peak < 4 * DIRECTORY_BYTES_MAX, "it was 194 MB"


def test_a_list_that_is_as_long_as_is_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    directory(path, DIRECTORY_BYTES_MAX // 51)
    with opened(path) as archive:
        assert len(archive.infolist()) == DIRECTORY_BYTES_MAX // 51


def test_a_head_that_promises_gigabytes_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    promised = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(64 * 1024 * 1024)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", promised)
    tracemalloc.start()
    assert dtypes_of(path) == {}
    assert refusal(path).code in {"calibration_malformed", "calibration_names"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * HEAD_BYTES_MAX


def test_a_head_is_read_whatever_its_version() -> None:
    array = np.zeros((3, 2), np.float32)
    for version in ((1, 0), (2, 0), (3, 0)):
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=version)
        file.seek(0)
        assert head(file) == ((3, 2), np.dtype(np.float32))


def test_names_without_measure_do_not_fill_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(10):
            archive.writestr(f"{i}{'n' * 60_000}.npy", b"")
    assert len(str(refusal(path))) < 2500
