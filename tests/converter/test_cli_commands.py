"""The group of commands: help, completion, `targets`, `candidates` and `report`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from converter.cli import command
from tests.converter.builders import Workshop
from tests.converter.commands import invoke, main_code


def test_the_old_way_to_list_targets_still_works() -> None:
    assert "arm64_dotprod" in invoke("--list-targets").stdout
    assert invoke("--list-targets", "--json").stdout == invoke("targets", "--json").stdout
    assert invoke("--json", "--list-targets").stdout == invoke("targets", "--json").stdout
    assert "--list-targets" not in invoke("--help").stdout


def test_targets_are_listed_and_one_is_shown_with_every_source() -> None:
    listed = json.loads(invoke("targets", "--json").stdout)
    assert {"x86_vnni", "x86_avx2", "arm64_v8_0", "arm64_dotprod"} <= {target["id"] for target in listed}
    shown = invoke("targets", "rpi5").stdout
    one = json.loads(invoke("targets", "rpi5", "--json").stdout)
    assert one["id"] == "arm64_dotprod"
    for rule in one["rules"].values():
        assert rule["source"] in " ".join(shown.split())


def test_an_unknown_target_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_code(["targets", "toaster"], monkeypatch) == 2
    assert "there is no target" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, "convert", "targets", "candidates", "inspect", "report"])
def test_every_command_has_help_with_an_example(name: str | None) -> None:
    result = invoke(*([] if name is None else [name]), "--help")
    assert result.exit_code == 0
    assert re.search(r"Examples?:\n +shallop-convert ", result.stdout)
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_without_words_there_is_help_and_2() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Examples:" in result.stderr


def test_the_command_may_be_named_or_left_out_and_options_may_come_first(workshop: Workshop) -> None:
    named = invoke("convert", *workshop.arguments())
    assert (named.exit_code, named.output) == (0, "")
    model, *rest = workshop.arguments()
    turned = invoke(*rest, "--force", model)
    assert (turned.exit_code, turned.output) == (0, "")


def _completed(words: str, shell: str = "bash") -> list[str]:
    """What the shell is offered for the last of these words."""
    parts = words.split(" ")
    environment = {
        "_SHALLOP_CONVERT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        result = CliRunner().invoke(command, [], prog_name="shallop-convert", env=environment)
    return result.stdout.split()


def test_a_shell_completes_commands_files_and_options() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_SHALLOP_CONVERT_COMPLETE" in invoke("--completion", shell).stdout
    first = _completed("shallop-convert ")
    assert {"plain,convert", "plain,inspect", "plain,targets", "plain,candidates", "plain,report"} <= set(
        first
    )
    assert first[0] == "file,", "a model file may come first"
    assert _completed("shallop-convert ins")[1:] == ["plain,inspect"]
    assert "plain,--calibration" in _completed("shallop-convert --cal")
    assert "plain,--calibration" in _completed("shallop-convert convert --cal")
    assert _completed("shallop-convert model.onnx --cal") == ["plain,--calibration"]
    assert _completed("shallop-convert inspect --js") == ["plain,--json"]


def test_candidates_shows_the_table_again_and_its_exit_code(workshop: Workshop) -> None:
    invoke(*workshop.arguments())
    shown = invoke("candidates", str(workshop.output))
    assert shown.exit_code == 0
    assert "chosen: onnxruntime/" in shown.stdout
    assert "report.html" in shown.stdout
    asked = invoke("candidates", str(workshop.output), "--json")
    assert asked.stdout.encode() == (workshop.output / "candidates.json").read_bytes()
    workshop.sla.write_text("size_bytes_max: 10\n")
    invoke(*workshop.arguments(), "--force")
    none = invoke("candidates", str(workshop.output))
    assert none.exit_code == 3
    assert "none chosen" in none.stdout


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("{", "is no candidates.json"), ("[]", "is no candid")]
)
def test_candidates_that_cannot_be_read_end_with_2(
    tmp_path: Path,
    content: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "candidates.json").write_text(content)
    for name in ("candidates", "report"):
        assert main_code([name, str(tmp_path)], monkeypatch) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_report_makes_the_same_page_again(workshop: Workshop) -> None:
    invoke(*workshop.arguments())
    page = workshop.output / "report.html"
    first = page.read_bytes()
    page.unlink()
    result = invoke("report", str(workshop.output))
    assert (result.exit_code, result.stdout.strip()) == (0, str(page))
    assert page.read_bytes() == first
    assert not list(workshop.output.glob("*.part"))
