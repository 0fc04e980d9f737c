"""A model that ends or busies what opens it: `inspect` says so by name, and lives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.confined import Limits, looked
from converter.errors import InputError
from converter.inspect import inspect
from converter.look import Job, Model
from converter.tflite_summary import TFLiteModel
from tests.converter.builders import conv_net
from tests.converter.commands import main_code
from tests.converter.test_opening import doubling, naming
from tests.converter.tiny_tflite import integer_conv


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    net, tiny = tmp_path / "net.onnx", tmp_path / "tiny.tflite"
    net.write_bytes(conv_net().SerializeToString())
    tiny.write_bytes(integer_conv(np.arange(-6, 6, dtype=np.int8).reshape(4, 3)))
    return net, tiny


def jobs(*paths: Path) -> list[Job]:
    return [Job(path=str(path), name=path.name) for path in paths]


def spoilt(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The process's runtime is a bad one."""
    place = folder / "bad" / "sitecustomize.py"
    place.parent.mkdir()
    place.write_text(
        f"import sys\nif '-m' in sys.orig_argv and 'converter.look_child' in sys.orig_argv:\n{code}"
    )
    monkeypatch.setenv("PYTHONPATH", str(place.parent))


OPEN = """
    import converter.look as look
    def bad(*_):
        {0}
    look._fused = bad
"""
DESCRIBE = """
    import converter.look as look
    def bad(*_):
        {0}
    look.summarize = bad
"""


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        (
            "import sys; sys.stderr.write('the sky fell\\n'); sys.stderr.flush(); import os; os._exit(7)",
            "sky fell",
        ),
        ("import mmap; return mmap.mmap(-1, 8 << 30)", "Cannot allocate memory"),
        ("while True: pass", "2 s of processor time"),
    ],
)
def test_a_runtime_that_a_file_ends_is_named_and_the_next_file_is_told_too(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, does: str, words: str
) -> None:
    spoilt(tmp_path, monkeypatch, OPEN.format(does))
    net, tiny = looked(jobs(*files), Limits(cpu_s_max=2))
    assert isinstance(net, Model)
    assert net.graph.nodes == 7, "it was described before it was opened"
    assert net.fusion is None
    assert words in net.fusion_note
    assert isinstance(tiny, TFLiteModel)
    assert tiny.runs


def test_a_file_that_ends_the_process_before_it_is_described_is_refused(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(tmp_path, monkeypatch, DESCRIBE.format("import os; os.kill(os.getpid(), 11)"))
    with pytest.raises(InputError) as refused:
        list(looked(jobs(*files)))
    assert refused.value.code == "model_not_opened"
    assert "net.onnx cannot be looked into: SIGSEGV" in str(refused.value)


def test_one_that_sleeps_is_ended_in_time(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(tmp_path, monkeypatch, OPEN.format("import time; time.sleep(60)"))
    (net,) = looked(jobs(files[0]), Limits(wall_s_max=3.0))
    assert isinstance(net, Model)
    assert "longer than 3 s" in net.fusion_note


@pytest.mark.parametrize("line", [b"{", b'{"onnx": 7}', b"\xff"])
def test_a_process_that_was_taken_over_gives_data_and_nothing_else(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    spoilt(
        tmp_path, monkeypatch, f"    import os\n    os.write(1, {line!r} + bytes([10]))\n    os._exit(0)\n"
    )
    with pytest.raises(InputError) as refused:
        list(looked(jobs(files[0])))
    assert refused.value.code == "model_not_opened"


# --- by the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: doubling(40), "model_too_large"),
        (lambda: naming(1, length=True, location="../x"), "model_external_data"),
    ],
)
def test_hostile_files_are_refused_by_the_command_with_their_name(
    tmp_path: Path,
    build: object,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(build)
    path = tmp_path / "net.onnx"
    path.write_bytes(build().SerializeToString())
    assert main_code(["inspect", str(path)], monkeypatch) == 2
    shown = capsys.readouterr()
    assert f"[{code}]" in shown.err
    assert "net.onnx" in shown.err
    assert shown.out == ""


def test_a_constant_that_is_cut_short_never_reaches_litert(tmp_path: Path) -> None:
    content = bytearray(integer_conv(np.arange(-6, 6, dtype=np.int8).reshape(4, 3)))
    weights = np.arange(-6, 6, dtype=np.int8).tobytes()
    at = content.index(weights)
    content[at - 4 : at] = (11).to_bytes(4, "little")
    path = tmp_path / "tiny.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        inspect(path)
    assert refused.value.code == "model_not_tflite"
    assert "takes 12 bytes and has 11" in str(refused.value)


def test_nothing_is_left_of_a_process_that_was_killed(
    tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "temporary"
    left.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(left))
    spoilt(
        tmp_path, monkeypatch,
        OPEN.format("import tempfile, os; tempfile.mkdtemp(); os.kill(os.getpid(), 9)"),
    )  # fmt: skip
    (net,) = looked(jobs(files[0]))
    assert isinstance(net, Model)
    assert "SIGKILL" in net.fusion_note
    assert list(left.iterdir()) == []
