"""Every command and subcommand of the three programs shows an example that begins with the program's name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import agent.cli
import converter.cli
import fleet.cli


def top(module: ModuleType) -> click.Command:
    """The module's click command that is no other's subcommand, whatever it is called."""
    found = [value for value in vars(module).values() if isinstance(value, click.Command)]
    subs = [sub for group in found if isinstance(group, click.Group) for sub in group.commands.values()]
    (command,) = [command for command in found if command not in subs]
    return command


CLICK = {"shallop-fleet": top(fleet.cli), "shallop-convert": top(converter.cli)}


def examples(text: str, program: str) -> list[str]:
    """Lines (after `Example:`, where it stands on the same line) that call `program`."""
    lines = [line.strip() for line in text.splitlines()]
    called = [
        line.partition(":")[2].strip() if line.lower().startswith("example") else line for line in lines
    ]
    return [line for line in called if line.startswith(f"{program} ")]


def click_commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from click_commands(sub, (*path, name))


def parsers(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from parsers(sub, (*path, name))


@pytest.mark.parametrize(
    ("program", "path"),
    [(program, path) for program, main in CLICK.items() for path in click_commands(main)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "alone",
)
def test_every_click_command_shows_an_example_of_itself(program: str, path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(CLICK[program], [*path, "--help"], prog_name=program)
    assert shown.exit_code == 0, shown.output
    found = examples(shown.output, program)
    assert found
    assert any(line.startswith(" ".join((program, *path))) for line in found), found


@pytest.mark.parametrize(
    ("path", "parser"),
    list(parsers(agent.cli.parser())),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_of_the_agent_shows_an_example_of_itself(
    path: tuple[str, ...], parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        agent.cli.main([*path, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown == parser.format_help()
    assert any(
        line.startswith(" ".join(("shallop-agent", *path))) for line in examples(shown, "shallop-agent")
    )


def test_a_text_without_an_example_is_noticed() -> None:
    assert examples("Usage: shallop-fleet serve [OPTIONS]\n\n  Serves.", "shallop-fleet") == []
    assert examples("  Example: shallop-fleet serve", "shallop-fleet") == ["shallop-fleet serve"]
    assert examples("examples:\n  shallop-fleet serve", "shallop-fleet") == ["shallop-fleet serve"]
