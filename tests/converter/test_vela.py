"""Arm's compiler, really run: what it leaves to the CPU is what the rules predict."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from converter.errors import InputError, RecipeError
from converter.targets import vela
from converter.targets.loader import find_target
from converter.targets.tflite_lint import predict
from converter.targets.tflite_rules import VelaSettings
from converter.targets.tflite_verdict import file_verdict
from converter.targets.vela import SETTING, Compiled, compile_file, find_vela, vela_for
from converter.tflite.errors import TFLiteError
from converter.tflite.reader import read_file
from tests.converter.tflite_cases import conv, ethos, refused, unary
from tests.converter.tflite_files import file_of

U65 = VelaSettings(accelerator="ethos-u65-256")
ETHOS = find_target("ethos-u")


@pytest.fixture(scope="module")
def program() -> Path:
    found = find_vela()
    if found is None:
        pytest.skip("vela is not installed (pip install ethos-u-vela)")
    return found


@pytest.fixture(scope="module")
def whole(program: Path) -> tuple[bytes, Compiled]:
    """Every case of an operator in one file, compiled at once."""
    content = file_of(*(operator for operator, _ in ethos().values()))
    return content, compile_file(program, U65, content)


def test_the_compiler_does_to_every_case_what_the_rules_predict(whole: tuple[bytes, Compiled]) -> None:
    content, compiled = whole
    names = list(ethos())
    expected = predict(ETHOS, read_file(content))
    assert expected is not None
    assert compiled.operators == expected.operators == len(names)
    left = {names[one.index] for one in compiled.on_cpu}
    assert left == {names[index] for index in expected.elsewhere}
    assert left == {name for name, (_, rule) in ethos().items() if rule is not None}
    assert set(expected.elsewhere.values()) == {"CPU"}
    assert compiled.share == expected.share
    assert expected.share is not None
    assert 0 < expected.share < 1


def test_what_is_left_to_the_cpu_has_the_compilers_reason(whole: tuple[bytes, Compiled]) -> None:
    file, names = read_file(whole[0]), list(ethos())
    reasons = {names[one.index]: one.reason for one in whole[1].on_cpu}
    assert reasons["div"] == "Unsupported opType"
    assert "Float32" in reasons["conv, float"]
    assert "Batch > 1" in reasons["mean of two samples"]
    for one in whole[1].on_cpu:
        assert file.operators[one.index].kind == one.kind
        assert file.made(file.operators[one.index])[0].name == one.name


def test_the_estimates_and_the_key(whole: tuple[bytes, Compiled], program: Path) -> None:
    compiled = whole[1]
    assert (compiled.system, compiled.memory) == ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB")
    assert compiled.cycles_estimated > 0
    # At the 1 GHz that this system is assumed to have.
    assert compiled.inference_ms_estimated == pytest.approx(compiled.cycles_estimated / 1e6, rel=1e-3)
    assert compiled.sram_kib_estimated > 0
    assert compiled.version.startswith("5.")
    assert {one.kind for one in read_file(compiled.content).operators} >= {"ethos-u", "DIV"}
    small = file_of(conv())
    one, again = (compile_file(program, U65, small) for _ in range(2))
    other = compile_file(program, VelaSettings(accelerator="ethos-u55-128"), small)
    sparing = VelaSettings(accelerator="ethos-u55-128", system="Ethos_U55_Deep_Embedded", memory="Sram_Only")
    slow = compile_file(program, sparing, small)
    assert (slow.system, slow.memory) == ("Ethos_U55_Deep_Embedded", "Sram_Only")
    assert slow.inference_ms_estimated > other.inference_ms_estimated
    assert one.cache_key == again.cache_key
    assert len({compiled.cache_key, one.cache_key, other.cache_key, slow.cache_key}) == 4
    assert one.on_cpu == ()


@pytest.mark.parametrize("name", list(refused()))
def test_what_the_compiler_refuses_whole_is_predicted(program: Path, name: str) -> None:
    operator, rule = refused()[name]
    content = file_of(conv(), operator)
    expected = predict(ETHOS, read_file(content))
    assert expected is not None
    assert expected.refused
    assert (1, rule) in {(one.index, one.rule) for one in expected.findings if one.runs_on == "nowhere"}
    with pytest.raises(RecipeError) as caught:
        compile_file(program, U65, content)
    assert caught.value.code in {"vela_refused", "vela_output"}
    told = file_verdict(ETHOS, content, program)
    assert told.errors == 1
    assert told.words[0].startswith("not compiled, not run: vela ")


def test_a_verdict_of_the_compiler_in_words(program: Path) -> None:
    told = file_verdict(ETHOS, file_of(conv(), unary("SQRT")), program)
    assert told.falls_back is True
    assert told.errors == 0
    (words,) = told.words
    assert words.startswith("compiled by vela 5.")
    assert "for ethos-u65-256, not run on the NPU: 1 of 2 operators on the NPU, 100% of the mult" in words
    assert "; on the CPU SQRT 1 (Unsupported opType); estimated by vela (Ethos_U65_Client_Server, " in words
    assert words.endswith("KiB of SRAM")
    clean = file_verdict(ETHOS, file_of(conv()), program)
    assert clean.falls_back is False
    assert "; nothing on the CPU; " in clean.words[0]


_ODD_SUMMARY = """open(out + '/model_vela.tflite', 'wb').write(b'')
open(out + '/model_summary_x.csv', 'w').write('a,b\\n1,2\\n')"""
_LARGE = "with open(out + '/model_vela.tflite', 'wb') as file: file.write(b'.' * 5_000)"


def _fake(folder: Path, body: str, version: str = "print('5.2.0')") -> Path:
    """A program that stands where vela is expected."""
    path = folder / "vela"
    body = body.replace("\n", "\n    ")
    path.write_text(
        f"#!{sys.executable}\nimport sys, os\nif '--version' in sys.argv:\n    {version}\nelse:\n"
        f"    out = sys.argv[sys.argv.index('--output-dir') + 1]\n    {body}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "version", "code", "words"),
    [
        ("pass", "print('5.2.0')", "vela_output", "wrote no compiled file"),
        ("sys.exit('Error: no such accelerator')", "print('5.2.0')", "vela_refused", "Error: no such accel"),
        ("os.kill(os.getpid(), 11)", "print('5.2.0')", "vela_refused", "it was ended by SIGSEGV"),
        ("sys.exit(3)", "print('5.2.0')", "vela_refused", "it ended with 3"),
        ("pass", "pass", "vela_output", "--version says nothing"),
        ("pass", "sys.exit(1)", "vela_output", "--version says nothing"),
        (_ODD_SUMMARY, "print('5.2.0')", "vela_output",
         "the summary of vela lacks some of accelerator_configuration, cycles_total"),
        (_LARGE, "print('5.2.0')", "vela_refused", "does not compile the file"),
        ("bytearray(1 << 30)", "print('5.2.0')", "vela_refused", "does not compile the file"),
        ("import time; time.sleep(60)", "print('5.2.0')", "vela_timeout", "more than 2 s and was ended"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, version: str, code: str, words: str
) -> None:
    monkeypatch.setattr(vela, "SECONDS_MAX", 2.0)
    monkeypatch.setattr(vela, "BYTES_MAX", 4_000)
    monkeypatch.setattr(vela, "MEMORY_BYTES_MAX", 512 << 20)
    with pytest.raises(RecipeError, match=words) as caught:
        compile_file(_fake(tmp_path, body, version), U65, file_of(conv()))
    assert caught.value.code == code


def test_what_cannot_be_given_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TFLiteError, match=r"do not begin as a \.tflite file"):
        compile_file(tmp_path / "vela", U65, b"no file")
    with pytest.raises(RecipeError, match="cannot be started") as caught:
        compile_file(tmp_path / "vela", U65, file_of(conv()))
    assert caught.value.code == "vela_refused"
    monkeypatch.setattr(vela, "BYTES_MAX", 100)
    with pytest.raises(RecipeError, match="at most 100 are compiled here") as caught:
        compile_file(tmp_path / "vela", U65, file_of(conv()))
    assert caught.value.code == "vela_size"


def test_where_the_program_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake(tmp_path, "pass")
    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_vela() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_vela() == fake
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_vela() == fake
    monkeypatch.setenv(SETTING, str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"shallop\[ethos-u\]") as caught:
        find_vela()
    assert caught.value.code == "vela_missing"
    assert find_vela(fake) == fake


def test_only_ethos_u_has_a_use_for_it(tmp_path: Path) -> None:
    fake = _fake(tmp_path, "pass")
    assert vela_for(ETHOS, fake) == fake
    for name in ("coral", "imx8mp", "rpi5", "orin"):
        assert vela_for(find_target(name)) is None
        with pytest.raises(InputError, match="has no use for it") as caught:
            vela_for(find_target(name), fake)
        assert caught.value.code == "vela_unused"
