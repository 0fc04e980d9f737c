"""`shallop-convert convert`.

For: its options, its progress, its table and its exit code.
Not for: work (`converter.pipeline`).
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from converter.attempts import Edge, Format
from converter.cli.screen import progress
from converter.cli.showing import show_candidates
from converter.limits import LATENCY_RUNS_DEFAULT, LATENCY_RUNS_MIN
from wire.tasks import Kind

EXIT_NONE_PASSES = 3

_EPILOG = """\b
Examples:
  shallop-convert convert fashion.onnx --calibration cal.npz \\
      --validation val.npz --target host --sla sla.yaml --output bundle
  shallop-convert convert fashion.onnx --calibration cal.npz \\
      --validation val.npz --target rpi5 --sla sla.yaml --output bundle-rpi5 \\
      --json > candidates.json

\b
OUTPUT then holds report.html, candidates.json and, where a candidate passes,
the bundle.
Exit codes: 0 a candidate passes the SLA, 3 none does (candidates.json says
why), 2 bad input.
"""

_FILE = click.Path(path_type=Path)


def _names(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


_REQUIRED = ("model", "calibration", "validation", "target", "sla", "output")


@click.command(
    "convert", epilog=_EPILOG, short_help="Quantize a model, measure it, bundle what meets the SLA."
)
@click.argument("model", type=_FILE, metavar="MODEL", required=False)
@click.option("--calibration", type=_FILE, help=".npz with one array per model input, first axis samples.")
@click.option("--validation", type=_FILE, help="The same with `labels`, one integer a sample.")
@click.option("--target", help="Target id or alias, or `host`; see `shallop-convert targets`.")
@click.option("--sla", type=_FILE, help="YAML file with the limits.")
@click.option("--output", type=_FILE, help="Directory to make; written whole or not at all.")
@click.option("--name", help="Model name; default: the file's name.")
@click.option("--release", help="Release name; default: the time, UTC.")
@click.option("--dataset", type=_FILE, help="dataset.yaml; default: the one beside the calibration set.")
@click.option("--task", type=click.Choice(get_args(Kind)), help="What the model is for; default: inferred.")
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
@click.option(
    "--candidates",
    callback=_names,
    metavar="NAME,NAME",
    default="",
    help="Only these, each [RUNTIME/]RECIPE, best first; default: all that suit.",
)
@click.option(
    "--format", type=click.Choice(get_args(Format)), help="What is written; default: what the target takes."
)
@click.option(
    "--tflite-edge", type=click.Choice(get_args(Edge)), help="Inputs and outputs of quantized .tflite files."
)
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Of .tflite files.")
@click.option(
    "--tflite-runtime",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PYTHON",
    help="Python of an environment with tflite-runtime: every .tflite file is answered there too.",
)
@click.option("--vela", type=_FILE, help="Arm's compiler for Ethos-U; default: the one that is installed.")
@click.option("--quick", is_flag=True, help="A first look: fewer samples and timed pairs, wider intervals.")
@click.option("--executor", metavar="WHERE", help="Make candidates on processes:N or dask:HOST:PORT.")
@click.option("--json", "as_json", is_flag=True, help="candidates.json on standard output, nothing else.")
@click.option("--wide", is_flag=True, help="All columns of the table, whatever the terminal's width.")
@click.option("--force", is_flag=True, help="Replace an earlier bundle in the output directory.")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@click.pass_context
def convert_command(
    context: click.Context, /, as_json: bool, wide: bool, quiet: bool, **options: object
) -> None:
    """Quantize MODEL (ONNX, FP32), measure every candidate, and bundle what meets the SLA."""
    missing = ["MODEL" if name == "model" else f"--{name}" for name in _REQUIRED if options[name] is None]
    if missing:
        raise click.UsageError(
            f"missing {', '.join(missing)}; `shallop-convert convert --help` shows an example"
        )
    context.exit(_convert(options, as_json=as_json, wide=wide, quiet=quiet))


def _convert(options: dict[str, object], *, as_json: bool, wide: bool, quiet: bool) -> int:
    """Runs the conversion and shows what came of it; returns the exit code."""
    from converter.inputs import Options  # noqa: PLC0415 - `--help` needs neither numpy nor a runtime
    from converter.pipeline import report_bytes, run  # noqa: PLC0415

    typed = Options(**options)  # type: ignore[arg-type] # click has typed every one of them
    with progress(shown=not quiet) as told:
        conversion = run(typed, told)
    if as_json:
        click.echo(report_bytes(conversion.report), nl=False)
    elif not quiet:
        show_candidates(conversion.report, conversion.directory, wide=wide)
    return 0 if conversion.passed else EXIT_NONE_PASSES
