"""`shallop-convert`, the command line.

For: reading arguments, showing progress and the table, and the exit code: 0 a candidate passes, 3 none
does, 2 bad input.
Not for: work; that is `converter.pipeline`, which is imported only when it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import msgspec
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from converter.limits import LATENCY_RUNS_DEFAULT, LATENCY_RUNS_MIN
from wire.errors import ShallopError
from wire.tasks import Kind

if TYPE_CHECKING:
    from converter.candidates import Report
    from converter.measured import Progress

PROGRAM = "shallop-convert"
EXIT_BAD_INPUT = 2
EXIT_NONE_PASSES = 3
_WIDTH_PIPED = 180
"""Columns where standard output is no terminal; eighty would cut the table."""

_EPILOG = """\b
Examples:
  shallop-convert fashion.onnx --calibration calibration.npz --validation validation.npz \\
      --target host --sla sla.yaml --output bundle
  shallop-convert fashion.onnx --calibration calibration.npz --validation validation.npz \\
      --target rpi5 --sla sla.yaml --output bundle-rpi5 --json > candidates.json
  shallop-convert --list-targets
  eval "$(shallop-convert --completion bash)"

\b
Exit codes: 0 a candidate passes the SLA, 3 none does (candidates.json says why), 2 bad input.
"""

_FILE = click.Path(path_type=Path)
_TASKS = get_args(Kind)


@click.command(name=PROGRAM, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=_FILE, required=False)
@click.option("--calibration", type=_FILE, help=".npz with one array per model input, first axis samples.")
@click.option("--validation", type=_FILE, help="The same with `labels`, one integer a sample.")
@click.option("--target", help="Target id or alias, or `host`; see --list-targets.")
@click.option("--sla", type=_FILE, help="YAML file with the limits.")
@click.option("--output", type=_FILE, help="Directory to make; written whole or not at all.")
@click.option("--name", help="Model name; default: the file's name.")
@click.option("--release", help="Release name; default: the time, UTC.")
@click.option("--dataset", type=_FILE, help="dataset.yaml; default: the one beside the calibration set.")
@click.option("--task", type=click.Choice(_TASKS), help="What the model is for; default: inferred.")
@click.option("--metric", help="mae or rmse (regression), or module:function (custom).")
@click.option("--search", type=_FILE, help="Labelled samples that a search may look at; they judge nothing.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of timed runs.")
@click.option(
    "--latency-samples",
    type=click.IntRange(LATENCY_RUNS_MIN, 100_000),
    default=LATENCY_RUNS_DEFAULT,
    show_default=True,
    help="Timed pairs of each candidate and FP32.",
)
@click.option("--json", "as_json", is_flag=True, help="candidates.json on standard output, nothing else.")
@click.option("--force", is_flag=True, help="Replace an earlier bundle in the output directory.")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@click.option("--list-targets", is_flag=True, help="Show the targets and exit.")
@click.option(
    "--completion", type=click.Choice(["bash", "zsh", "fish"]), help="Print shell completion and exit."
)
@click.version_option(package_name="shallop", prog_name=PROGRAM)
@click.pass_context
def command(context: click.Context, /, **options: object) -> None:
    """Quantize MODEL (ONNX, FP32), measure every candidate, and bundle what meets the SLA."""
    as_json = bool(options.pop("as_json"))
    quiet = bool(options.pop("quiet"))
    shell = options.pop("completion")
    if shell is not None:
        click.echo(completion(str(shell)))
    elif options.pop("list_targets"):
        list_targets(as_json=as_json)
    else:
        context.exit(_convert(_required(options), as_json=as_json, quiet=quiet))


def main() -> None:
    """Entry point of the console script."""
    try:
        command(prog_name=PROGRAM)
    except ShallopError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)


def _required(options: dict[str, object]) -> dict[str, object]:
    """The options for `convert()`; the ones that only a conversion needs are asked for here."""
    options.pop("list_targets", None)
    names = ("model", "calibration", "validation", "target", "sla", "output")
    missing = ["MODEL" if name == "model" else f"--{name}" for name in names if options[name] is None]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}; `{PROGRAM} --help` shows an example")
    return options


def _convert(options: dict[str, object], *, as_json: bool, quiet: bool) -> int:
    """Runs the conversion and shows what came of it; returns the exit code."""
    from converter.inputs import Options  # noqa: PLC0415 - `--help` needs neither numpy nor a runtime
    from converter.pipeline import report_bytes, run  # noqa: PLC0415

    typed = Options(**options)  # type: ignore[arg-type] # click has typed every one of them
    with _progress(shown=not quiet) as told:
        conversion = run(typed, told)
    if as_json:
        click.echo(report_bytes(conversion.report), nl=False)
    elif not quiet:
        _show(conversion.report, conversion.directory)
    return 0 if conversion.passed else EXIT_NONE_PASSES


def _show(report: Report, directory: Path) -> None:
    from converter.table import render  # noqa: PLC0415

    console = _console()
    console.print(render(report))
    if report.chosen is None:
        console.print(f"[red]none chosen[/red]: {report.chosen_reason}; see {directory}/candidates.json")
    else:
        console.print(f"chosen: {report.chosen} ({report.chosen_reason}); bundle in {directory}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED, highlight=False, soft_wrap=False)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """A bar on standard error for each stage."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        tasks = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield told


def list_targets(*, as_json: bool) -> None:
    """The targets, with what this machine is."""
    from converter.targets.detect import detect_machine, meets  # noqa: PLC0415
    from converter.targets.loader import all_targets  # noqa: PLC0415

    targets = all_targets()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(targets), indent=2))
        return
    machine = detect_machine()
    table = Table("target", "aliases", "what", "this machine", "candidates, best first")
    for target in targets:
        here = "yes" if meets(machine, target.requires.value) else ""
        recipes = "\n".join(target.rules.recipes.value)
        table.add_row(target.id, ", ".join(target.aliases), target.title, here, recipes)
    _console().print(table)


def completion(shell: str) -> str:
    """The script that a shell evaluates to complete this command."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(command, {}, PROGRAM, "_SHALLOP_CONVERT_COMPLETE").source()


if __name__ == "__main__":
    main()
