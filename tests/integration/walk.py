"""A document's console blocks, run as a person would: docs/operate.md stays true because a test walks it.

For: reading ```console blocks whose lines begin with `MACHINE$ `, running each command on that machine's own
folder with real programs, and comparing what it prints with what the document shows.
Not for: containers or virtual machines: all machines are folders of this one, on loopback.

What a document shows below a command must be what is printed, but `...` stands for anything. A block of
another language whose first line is `# MACHINE:PATH` is a file that the reader writes there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from examples.demo.house import ROOT, Process

COMMAND_S_MAX = 180
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^([a-z][a-z0-9-]*)\$ (.*)$")
_AS = re.compile(r"^sudo (-u [a-z-]+ )?")
"""All of it is one user's here."""
_FILE = re.compile(r"^# ([a-z][a-z0-9-]*):(/\S+)\n")
PROGRAMS = {"shallop-fleet": "fleet.cli", "shallop-agent": "agent.cli", "shallop-convert": "converter.cli"}


class Step(Struct, frozen=True, kw_only=True):
    """One command, or a file to write.

    Attributes:
        machine: whose it is.
        line: of the document, for a person who looks for it.
        command: as shown; empty where it is a file.
        shown: what the document shows below it, or the file's text.
        path: of the file.
    """

    machine: str
    line: int
    command: str = ""
    shown: str = ""
    path: str = ""


def steps_of(text: str) -> list[Step]:
    """The steps of a document, in order."""
    steps: list[Step] = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        body = block[2]
        if block[1] == "console":
            steps += _commands(body, line)
        elif found := _FILE.match(body):
            steps.append(Step(machine=found[1], line=line, path=found[2], shown=body))
    return steps


def _commands(body: str, line: int) -> list[Step]:
    found: list[tuple[str, str, int, list[str]]] = []
    for offset, text in enumerate(body.splitlines()):
        prompt = _PROMPT.match(text)
        if prompt:
            found.append((prompt[1], prompt[2], line + offset, []))
        elif found:
            found[-1][3].append(text)
    return [
        Step(machine=machine, line=at, command=command, shown="\n".join(shown))
        for machine, command, at, shown in found
    ]


def agrees(shown: str, printed: str) -> bool:
    """Whether what was printed is what is shown; `...` stands for anything, spaces count once."""
    pieces = [re.escape(" ".join(piece.split())) for piece in shown.split("...")]
    return re.fullmatch(r"\s*.*?".join(pieces), " ".join(printed.split()), re.DOTALL) is not None


class Machines:
    """Folders that stand for machines; the programs on them are real.

    Args:
        folder: of all of them.
        words: what stands in the document, and what it is here: addresses, ports, paths of the repository.
        units: what `systemctl start UNIT` starts on a machine: the command's words.
    """

    def __init__(
        self, folder: Path, words: Mapping[str, str], units: Callable[[str, str], list[str]]
    ) -> None:
        self._folder, self._words, self._units = folder, dict(words), units
        self._running: dict[tuple[str, str], Process] = {}
        self._since: dict[tuple[str, str], int] = {}
        self.environment: dict[str, dict[str, str]] = {}

    def folder(self, machine: str) -> Path:
        """What `/` is there."""
        place = self._folder / machine
        place.mkdir(parents=True, exist_ok=True)
        return place

    def say(self, word: str, meaning: str) -> None:
        """From now on `word` in a command means this, such as a token that was printed."""
        self._words[word] = meaning

    def here(self, machine: str, text: str) -> str:
        """The text with paths and words as they are on this machine."""
        for word, meaning in self._words.items():
            text = text.replace(word, meaning)
        return re.sub(r"(?<![\w.:/-])/(etc|var|media|run|srv)/", rf"{self.folder(machine)}/\1/", text)

    def run(self, step: Step) -> str:
        """Does a step; what it printed, in the document's words.

        Raises:
            AssertionError: it ended with an error, or printed something else than is shown.
        """
        place = f"docs/operate.md:{step.line}"
        text = self.here(step.machine, step.shown if step.path else step.command)
        if step.path:
            path = Path(self.here(step.machine, step.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return ""
        printed = self._command(step.machine, shlex.split(_AS.sub("", text)), place)
        shown = self.here(step.machine, step.shown)
        assert agrees(shown, printed), f"{place}: {step.command}\nshown:\n{shown}\nprinted:\n{printed}"
        return printed

    def _command(self, machine: str, words: list[str], place: str) -> str:
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.environment.setdefault(machine, {})[name] = value
            return ""
        if words[0] == "systemctl":
            self.unit(machine, words[1], words[2])
            return ""
        program = PROGRAMS.get(words[0])
        command = [sys.executable, "-m", program, *words[1:]] if program else words
        if words[0] == "shallop-agent":
            command += ["--config", str(self.folder(machine) / "etc/shallop/agent.yaml")]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "110", **self.environment.get(machine, {})}
        done = subprocess.run(
            command, cwd=self.folder(machine), env=env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=COMMAND_S_MAX,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{place}: {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def unit(self, machine: str, verb: str, name: str) -> None:
        """`systemctl start|stop|restart NAME`."""
        process = self._running.get((machine, name))
        if verb in {"stop", "restart"} and process is not None:
            process.stop()
        if verb in {"start", "restart"}:
            command = self._units(machine, name)
            process = Process(name, command, self.folder(machine))
            self._running[machine, name] = process
            self._since[machine, name] = process.log.stat().st_size if process.log.exists() else 0
            process.start()

    def log(self, machine: str, name: str) -> str:
        """What a unit said since it was started last."""
        said = self._running[machine, name].log.read_bytes()
        return said[self._since[machine, name] :].decode(errors="replace")

    def stop(self) -> None:
        """Ends every unit, the last one first."""
        for process in reversed(self._running.values()):
            process.stop()
