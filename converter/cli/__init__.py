"""`shallop-convert`, the command line.

For: the commands, their options, and the exit code: 0 done (of a conversion: a candidate passes), 3 no
candidate passes, 2 bad input.
Not for: work; that is `converter.pipeline` and its neighbours, imported only when they are needed.
"""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from converter.cli.converting import convert_command
from converter.cli.group import DefaultGroup
from converter.cli.showing import candidates_command, inspect_command, report_command, targets_command
from wire.errors import ShallopError

PROGRAM = "shallop-convert"
EXIT_BAD_INPUT = 2

_EPILOG = """\b
Examples:
  shallop-convert convert fashion.onnx --calibration cal.npz \\
      --validation val.npz --target host --sla sla.yaml --output bundle
  shallop-convert candidates bundle
  shallop-convert inspect bundle
  shallop-convert targets rpi5
  eval "$(shallop-convert --completion bash)"

\b
`shallop-convert MODEL ...` is `shallop-convert convert MODEL ...`.
Exit codes: 0 done, a candidate passes the SLA; 3 none does (candidates.json
says why); 2 bad input.
"""


@click.group(
    name=PROGRAM,
    cls=DefaultGroup,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--completion", type=click.Choice(["bash", "zsh", "fish"]), help="Print shell completion and exit."
)
@click.version_option(package_name="shallop", prog_name=PROGRAM)
@click.pass_context
def command(context: click.Context, /, completion: str | None) -> None:
    """Quantize ONNX models, measure every candidate, and bundle what meets an SLA."""
    if completion is not None:
        click.echo(completion_script(completion))
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_BAD_INPUT)


command.add_command(convert_command)
command.add_command(targets_command)
command.add_command(candidates_command)
command.add_command(inspect_command)
command.add_command(report_command)


def main() -> None:
    """Entry point of the console script."""
    try:
        command(prog_name=PROGRAM)
    except ShallopError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)


def completion_script(shell: str) -> str:
    """The script that a shell evaluates to complete this command."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(command, {}, PROGRAM, "_SHALLOP_CONVERT_COMPLETE").source()
