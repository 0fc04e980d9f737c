"""The command `shallop-agent`.

For: parsing arguments, setting up logs, turning errors into exit codes.
Not for: what the commands do (`agent.app`).

Exit codes: 0 done; 1 it failed; 2 wrong usage or configuration; 3 `doctor` found a problem; 4 the state
directory is in use or holds nothing of the kind.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from agent.adapters.aside import load_aside
from agent.config import Config, load
from agent.deployment import Deployment
from agent.errors import ConfigError, StateError
from agent.packages import put_off
from wire.errors import ShallopError, one_line

CONFIG_DEFAULT = "/etc/shallop/agent.yaml"
EXIT_CODES = """exit codes:
  0  done
  1  it failed
  2  wrong usage or configuration
  3  doctor: something does not work
  4  the state directory is in use, or does not hold what was asked for"""

INTERRUPTED = 128 + signal.SIGINT
"""What shells say of a program that a person broke off."""
SELDOM = ("ctypes", "shutil", "ssl", "statistics", "subprocess", "tempfile", "urllib.request")
"""What a daemon at rest does without, 4 MiB together. paho imports `urllib.request` for proxies and `ssl` for
TLS at its top; the others are for new devices, deployments and trials."""
_PRIORITY = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip


class _Formatter(logging.Formatter):
    """What is logged quotes strangers; a line's end in it would let them write lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return one_line(super().formatMessage(record))


class _JournalFormatter(_Formatter):
    """systemd's journal takes the level from a prefix, and knows the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _run(config: Config, _arguments: argparse.Namespace) -> None:
    put_off(*SELDOM, unraised=("SSLWantReadError", "SSLWantWriteError"))
    from agent.app import run  # noqa: PLC0415 - other commands need none of it

    run(config)
    # Signals come in twos and more; the interpreter's own end puts handlers back to what kills.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _status(config: Config, arguments: argparse.Namespace) -> int:
    from agent.shown import status  # noqa: PLC0415

    return status(config, arguments)


def _doctor(config: Config, arguments: argparse.Namespace) -> int:
    from agent.shown import doctor  # noqa: PLC0415

    return doctor(config, arguments)


def _line(d: Deployment) -> str:
    active = f"{d.active.release} ({d.active.variant})" if d.active else "nothing"
    previous = d.previous.release if d.previous else "nothing"
    text = f"{d.model}: runs {active}, before it {previous}, {d.phase}"
    if d.outcome is not None:
        text += f", order {d.order} {d.outcome}"
    return text + (f" [{d.reason.code}: {d.reason.detail}]" if d.reason else "")


def _adopt(config: Config, arguments: argparse.Namespace) -> None:
    from agent.app import adopt  # noqa: PLC0415

    adopted = adopt(config, arguments.model, arguments.path, arguments.release)
    sys.stdout.write(_line(adopted) + "\n")


def _trust(config: Config, arguments: argparse.Namespace) -> None:
    from agent.app import trust_root  # noqa: PLC0415

    root = trust_root(config, arguments.path, arguments.sha256)
    sys.stdout.write(f"root {root.number} is trusted; from now on this device believes signed words only\n")


def _enrol(config: Config, arguments: argparse.Namespace) -> int:
    from agent.cli_enrol import enrol  # noqa: PLC0415 - other commands need none of it

    return enrol(config, arguments)


def _rollback(config: Config, arguments: argparse.Namespace) -> None:
    from agent.app import rollback  # noqa: PLC0415

    sys.stdout.write(rollback(config, arguments.model) + "\n")


def _model_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", text):
        raise argparse.ArgumentTypeError("a model's name is lower-case letters, digits, '.', '_' and '-'")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("it is a number of seconds from 0.1 to 86400")
    return seconds


def _release_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise argparse.ArgumentTypeError("a release's name is letters, digits, '.', '_' and '-'")
    return text


class _Help(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal, for which argparse asks `shutil`, 0.4 MiB, though nobody wants help."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        try:
            width = int(columns) if columns.isdigit() else os.get_terminal_size().columns
        except OSError:
            width = 80
        super().__init__(prog, width=max(20, width - 2))


class _PrintCompletion(argparse.Action):
    """Prints a shell's completion script; the library is imported only here."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object, **_options: object) -> None:
        import shtab  # noqa: PLC0415

        _complete_paths(parser, shtab.FILE)
        sys.stdout.write(shtab.complete(parser, shell=str(arguments[1])) + "\n")
        parser.exit(0)


def _complete_paths(parser: argparse.ArgumentParser, how: object) -> None:
    """Lets every argument that is a path, of subcommands too, be completed as one."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if action.type is Path:
            action.complete = how  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for sub in action.choices.values():
                _complete_paths(sub, how)


_Command = Callable[
    [str, Callable[[Config, argparse.Namespace], int | None], str, str], argparse.ArgumentParser
]


def _looking(command: _Command) -> None:
    """The commands that only look."""
    status = command(
        "status", _status, "Show what runs, what waits and why, with or without the daemon.",
        "shallop-agent status --watch 5",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "--watch", type=_seconds, nargs="?", const=2.0, metavar="SECONDS",
        help="show it again whenever it changes, looking every SECONDS (2)",
    )  # fmt: skip
    doctor = command(
        "doctor", _doctor,
        "Examine clock, disk, sensors, runtimes, broker, permissions, state; say what to do about each.",
        "shallop-agent doctor --json",
    )  # fmt: skip
    doctor.add_argument(
        "--json", action="store_true", help="as JSON: name, status, detail and remedy of each"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="shallop-agent",
        description="Carries neural networks to this machine, proves them here, and can always turn back.",
        epilog=f"example:\n  shallop-agent run --config agent.yaml\n\n{EXIT_CODES}",
        formatter_class=_Help,
    )
    top.add_argument(
        "--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"), help="print a script"
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(
        name: str, act: Callable[[Config, argparse.Namespace], int | None], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
            formatter_class=_Help,
        )  # fmt: skip
        sub.add_argument("--config", type=Path, default=Path(CONFIG_DEFAULT), help="default: %(default)s")
        sub.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
        sub.set_defaults(act=act)
        return sub

    command("run", _run, "Run the daemon until SIGTERM.", "shallop-agent run --config agent.yaml")
    _looking(command)
    adopted = command(
        "adopt", _adopt, "Import a model file that you already run as the first good release.",
        "shallop-agent adopt digits /opt/app/digits.onnx --release before-shallop",
    )  # fmt: skip
    adopted.add_argument("model", type=_model_name)
    adopted.add_argument("path", type=Path)
    adopted.add_argument("--release", type=_release_name, default="adopted", help="its name")
    enrolled = command(
        "enrol", _enrol, "Enrol this device in a fleet, by the token that `shallop-fleet enrol` printed.",
        "shallop-agent enrol shallop1.l9kf...\n  shallop-agent enrol - <token.txt",
    )  # fmt: skip
    enrolled.add_argument(
        "token", nargs="?",
        help="the token; - reads it from standard input. As an argument other users of this machine can see "
        "it for a moment: it is good once",
    )  # fmt: skip
    enrolled.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds it")
    trusted = command(
        "trust", _trust, "Trust a fleet's root document, known by its digest (`shallop-fleet keys show`).",
        "shallop-agent trust root-1.json --sha256 5e1f...",
    )  # fmt: skip
    trusted.add_argument("path", type=Path)
    trusted.add_argument("--sha256", required=True, help="of the document, brought here by another way")
    back = command(
        "rollback", _rollback, "Go back to the previous release, with or without the daemon or a network.",
        "shallop-agent rollback digits",
    )  # fmt: skip
    back.add_argument("model", type=_model_name)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the result is the exit code."""
    arguments = parser().parse_args(argv)
    _logging(arguments.log_level)
    try:
        read = load_aside if arguments.act is _run else load
        return arguments.act(read(arguments.config), arguments) or 0
    except ConfigError as error:
        sys.stderr.write(f"shallop-agent: {error}\n")
        return 2
    except StateError as error:
        sys.stderr.write(f"shallop-agent: {error}\n")
        return 4
    except (ShallopError, OSError) as error:
        sys.stderr.write(f"shallop-agent: {error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
