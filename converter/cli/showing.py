"""The commands that show something again: `targets`, `candidates`, `inspect`, `report`.

For: reading what lies on disk and showing it to a person or, with --json, to a program.
Not for: converting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from converter.cli.screen import console, progress

if TYPE_CHECKING:
    from converter.candidates import Report

EXIT_NONE_PASSES = 3

_PATH = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output, nothing else.")
_wide = click.option("--wide", is_flag=True, help="All columns, whatever the terminal's width.")


def echo_json(value: object) -> None:
    """Any typed value as readable JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


@click.command(
    "targets",
    short_help="List the targets, or show one with every rule.",
    epilog="\b\nExamples:\n  shallop-convert targets\n  shallop-convert targets rpi5 --json",
)
@click.argument("target", metavar="[ID]", required=False)
@_json
def targets_command(target: str | None, as_json: bool) -> None:
    """The targets, or one of them with every rule and where it comes from."""
    from converter.targets.loader import all_targets, find_target  # noqa: PLC0415 - `--help` is quick

    if target is None:
        echo_json(all_targets()) if as_json else list_targets()
    elif as_json:
        echo_json(find_target(target))
    else:
        _show_target(target)


def list_targets() -> None:
    """The targets, with what this machine is."""
    from converter.targets.detect import detect_accelerators, detect_machine, of_class  # noqa: PLC0415
    from converter.targets.loader import all_targets  # noqa: PLC0415

    machine, attached = detect_machine(), detect_accelerators()
    table = Table("target", "aliases", "what", "this machine", box=SIMPLE_HEAD, pad_edge=False)
    for target in all_targets():
        here = "yes" if of_class(machine, target) else "attached" if target.id in attached else ""
        table.add_row(target.id, ", ".join(target.aliases), target.title, here)
    console().print(table)


def _show_target(name: str) -> None:
    from converter.report.page import rules_of  # noqa: PLC0415
    from converter.targets.loader import find_target  # noqa: PLC0415

    target = find_target(name)
    screen = console()
    screen.print(f"[bold]{escape(target.id)}[/bold]: {escape(target.title)}")
    for rule in rules_of(msgspec.to_builtins(target)):
        screen.print(f"\n[bold]{escape(rule.name)}[/bold]: {escape(rule.value)}")
        screen.print(f"  {escape(rule.confidence)}: {escape(rule.source)}", style="dim")


@click.command(
    "candidates",
    short_help="Show the candidate table of a conversion again.",
    epilog="\b\nExamples:\n  shallop-convert candidates bundle --wide\n"
    "  shallop-convert candidates bundle --json | jq '.candidates[].id'\n\n"
    "Exit codes: 0 a candidate passes, 3 none does, 2 bad input.",
)
@click.argument("directory", type=_PATH, metavar="DIR")
@_json
@_wide
@click.pass_context
def candidates_command(context: click.Context, directory: Path, as_json: bool, wide: bool) -> None:
    """The candidate table of an earlier conversion."""
    from converter.report.read import read_report  # noqa: PLC0415

    report, content = read_report(directory)
    if as_json:
        click.echo(content, nl=False)
    else:
        show_candidates(report, directory, wide=wide)
    context.exit(EXIT_NONE_PASSES if report.chosen is None else 0)


def show_candidates(report: Report, directory: Path, *, wide: bool) -> None:
    """The table, what was chosen, and where it lies."""
    from converter.report import PAGE_NAME  # noqa: PLC0415
    from converter.table import render  # noqa: PLC0415

    screen = console(wide=wide)
    screen.print(render(report, screen.width))
    where = escape(str(directory))
    if report.chosen is None:
        screen.print(f"[red]none chosen[/red]: {escape(report.chosen_reason)}; see {where}/candidates.json")
    else:
        screen.print(f"chosen: {escape(report.chosen)} ({escape(report.chosen_reason)}); bundle in {where}")
        screen.print(_recorded(report.provenance, where))
    if (directory / PAGE_NAME).is_file():
        screen.print(f"report: {where}/{PAGE_NAME}")


def _recorded(provenance: Mapping[str, object], where: str) -> str:
    """How much the bundle says of where it comes from, and what holds the files against it."""
    counts = {key: len(found) for key, found in provenance.items() if isinstance(found, Sized)}
    said = ", ".join(f"{counts[key]} {key}" for key in ("files", "tools", "options") if counts.get(key))
    return f"provenance: {said or 'not'} recorded; check it with `shallop-fleet verify {where}`"


@click.command(
    "report",
    epilog="\b\nExample:\n  shallop-convert report bundle && xdg-open bundle/report.html\n\n"
    "The page is made of candidates.json alone; the bundle itself is not touched.",
)
@click.argument("directory", type=_PATH, metavar="DIR")
def report_command(directory: Path) -> None:
    """Make DIR/report.html again from DIR/candidates.json."""
    from converter.output import replace_file  # noqa: PLC0415
    from converter.report import PAGE_NAME, read_report, render  # noqa: PLC0415

    report, _ = read_report(directory)
    place = (directory if directory.is_dir() else directory.parent) / PAGE_NAME
    replace_file(place, render(report))
    click.echo(place)


@click.command(
    "inspect",
    short_help="Show a bundle, an ONNX or a TFLite file, check every hash.",
    epilog="\b\nExamples:\n  shallop-convert inspect bundle\n  shallop-convert inspect model.onnx --json\n"
    "  shallop-convert inspect model.tflite\n\n"
    "Every file is hashed. Exit codes: 0 whole, 2 damaged (the files are named) or no bundle.",
)
@click.argument("path", type=_PATH)
@_json
def inspect_command(path: Path, as_json: bool) -> None:
    """What a bundle's directory, an ONNX or a TFLite file holds, and whether it is whole."""
    from converter.cli.inspection import show_inspection  # noqa: PLC0415
    from converter.inspect import inspect  # noqa: PLC0415

    with progress(shown=not as_json) as told:
        found = inspect(path, told)
    if as_json:
        echo_json(found)
    else:
        show_inspection(found, console())
