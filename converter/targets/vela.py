"""Arm's compiler for Ethos-U, asked about one `.tflite` file.

For: `vela_for()`, where it is, and `compile_file()`: which operators it puts on the NPU, which it leaves to
the CPU and why, and what it estimates. It runs in a folder of its own, with limits on time and sizes.
Not for: predicting (`converter.targets.tflite_lint`), running (there is no NPU here), or deciding whether the
compiled file goes into a bundle.

Source of the outputs' form: ethos-u-vela 5.2.0, `vela.py` and `stats_writer.py`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from msgspec import Struct

from converter.errors import InputError, RecipeError
from converter.targets.loader import Target
from converter.targets.tflite_lint import share_of
from converter.targets.tflite_rules import VelaSettings
from converter.tflite.reader import File, FileOperator, read_file

SETTING = "SHALLOP_VELA"
"""Environment variable that names the program."""

SECONDS_MAX = 300.0
"""Of one compilation; EfficientNet-Lite0 takes two."""
BYTES_MAX = 512 << 20
"""Of the file that is given, and of every file that is written."""
MEMORY_BYTES_MAX = 8 << 30
_ON_NPU = "ethos-u"
"""Name of the custom operator that stands for what the NPU runs."""
_SAID_CHARS_MAX = 400
_WARNING = re.compile(
    r"^Warning \(supported operators\) operator: (?P<kind>\S+), ofm: '(?P<name>.*)'\nReason: (?P<reason>.*)$",
    re.MULTILINE,
)


class OnCpu(Struct, frozen=True, kw_only=True):
    """One operator of the given file that the compiler leaves to the CPU.

    Attributes:
        index: of the operator in the given file.
        kind: of the operator.
        name: of its first output.
        reason: the compiler's; empty where it gives none.
    """

    index: int
    kind: str
    name: str
    reason: str


class Compiled(Struct, frozen=True, kw_only=True):
    """What the compiler made of a file; its figures are its estimates, never measurements.

    Attributes:
        version: of the compiler.
        accelerator: configuration that it compiled for.
        system: of the memories and clocks that it assumes.
        memory: mode that it assumes.
        operators: of the given file.
        on_cpu: of these, what is left to the CPU.
        share: of all multiplications, those on the NPU; None where there are none.
        cycles_estimated: of one inference.
        inference_ms_estimated: at the clock that `system` assumes.
        sram_kib_estimated: of SRAM in use.
        content: the compiled file.
        cache_key: sha256 over what the compiled file depends on.
    """

    version: str
    accelerator: str
    system: str
    memory: str
    operators: int
    on_cpu: tuple[OnCpu, ...]
    share: float | None
    cycles_estimated: int
    inference_ms_estimated: float
    sram_kib_estimated: float
    content: bytes
    cache_key: str


def find_vela(given: Path | None = None) -> Path | None:
    """The program: as given, as `SHALLOP_VELA` says, beside this Python, or on PATH; None where none is.

    Raises:
        InputError: `vela_missing`: what was given or set is no program.
    """
    asked = given or (Path(os.environ[SETTING]) if os.environ.get(SETTING) else None)
    if asked is not None:
        found = shutil.which(asked)
        if found is None:
            raise InputError(
                "vela_missing", f"{asked} is no program; install it with `pip install 'shallop[ethos-u]'`"
            )
        return Path(found)
    beside = Path(sys.executable).with_name("vela")
    found = str(beside) if beside.is_file() else shutil.which("vela")
    return None if found is None else Path(found)


def vela_for(target: Target, given: Path | None = None) -> Path | None:
    """The program where the target has a use for it; None where it has none, or there is no program.

    Raises:
        InputError: `vela_missing`; `vela_unused`: it was given for a target that it does not compile for.
    """
    if target.tflite is not None and target.tflite.vela.value is not None:
        return find_vela(given)
    if given is not None:
        raise InputError(
            "vela_unused", f"vela compiles for Ethos-U; leave --vela away, {target.id} has no use for it"
        )
    return None


def compile_file(program: Path, settings: VelaSettings, content: bytes) -> Compiled:
    """Compiles a file and says what came of it.

    Args:
        program: as `find_vela` gives it.
        settings: the accelerator's configuration, and the system's where it is known.
        content: the .tflite file.

    Raises:
        RecipeError: `vela_size`, `vela_timeout`; `vela_refused`: it does not compile the file, its words
            follow; `vela_output`: it does not say what is expected of its version.
        TFLiteError: `tflite_malformed`: the content is no .tflite file.
    """
    if len(content) > BYTES_MAX:
        raise RecipeError(
            "vela_size", f"the file has {len(content)} bytes, at most {BYTES_MAX} are compiled here"
        )
    given = read_file(content)
    version = _version(program)
    with tempfile.TemporaryDirectory(prefix="shallop-vela-") as folder:
        source = Path(folder) / "model.tflite"
        source.write_bytes(content)
        said = _run(program, settings, source)
        compiled, summary = _read(Path(folder), said)
    names = {made[0].name: one for one in given.operators if (made := given.made(one))}
    on_cpu = _on_cpu(read_file(compiled), names, said)
    told = tuple(str(summary[name]) for name in ("accelerator_configuration", "system_config", "memory_mode"))
    return Compiled(
        version=version, accelerator=settings.accelerator, system=told[1], memory=told[2],
        operators=len(given.operators), on_cpu=on_cpu,
        share=share_of(given, {one.index for one in on_cpu}),
        cycles_estimated=int(summary["cycles_total"]),
        inference_ms_estimated=1e3 * float(summary["inference_time"]),
        sram_kib_estimated=float(summary["sram_memory_used"]),
        content=compiled, cache_key=_key(content, version, told),
    )  # fmt: skip


def _key(content: bytes, version: str, told: tuple[str, ...]) -> str:
    """Over the model, the compiler, the accelerator's configuration, the system's and the memory's."""
    model = hashlib.sha256(content).hexdigest()
    return hashlib.sha256("\n".join((model, f"vela {version}", *told)).encode()).hexdigest()


@cache
def _version(program: Path) -> str:
    done = _started([str(program), "--version"], Path("/"), 60.0)
    found = done.stdout.strip().splitlines()
    if done.returncode or not found:
        raise RecipeError("vela_output", f"{program} --version says nothing: {_last(done)}")
    return found[-1][:40]


def _run(program: Path, settings: VelaSettings, source: Path) -> str:
    """What it says while it compiles."""
    words = [str(program), str(source), "--output-dir", str(source.parent)]
    words += ["--accelerator-config", settings.accelerator]
    words += ["--system-config", settings.system] if settings.system else []
    words += ["--memory-mode", settings.memory] if settings.memory else []
    done = _started(words, source.parent, SECONDS_MAX)
    if done.returncode:
        raise RecipeError("vela_refused", f"vela does not compile the file: {_last(done)}")
    return done.stdout


def _started(words: list[str], folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, preexec_fn=_limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RecipeError("vela_timeout", f"vela took more than {seconds:.0f} s and was ended") from error
    except OSError as error:
        raise RecipeError("vela_refused", f"{words[0]} cannot be started: {error}") from error


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES_MAX, BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """Its last words: from the error on where it names one; or how it ended."""
    if done.returncode < 0:
        return f"it was ended by {signal.Signals(-done.returncode).name}"
    text = " ".join((done.stderr.strip() or done.stdout.strip()).split())
    start = text.rfind("Error: ")
    told = text[start:] if start >= 0 else text[-_SAID_CHARS_MAX:]
    return told[:_SAID_CHARS_MAX] or f"it ended with {done.returncode}"


def _read(folder: Path, said: str) -> tuple[bytes, dict[str, str]]:
    """The compiled file and the one row of its summary."""
    compiled, tables = folder / "model_vela.tflite", sorted(folder.glob("model_summary_*.csv"))
    if not compiled.is_file() or len(tables) != 1:
        last = " ".join(said.split())[-_SAID_CHARS_MAX:]
        raise RecipeError("vela_output", f"vela wrote no compiled file or no summary: {last}")
    with tables[0].open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    wanted = {
        "accelerator_configuration", "system_config", "memory_mode", "cycles_total", "inference_time",
        "sram_memory_used",
    }  # fmt: skip
    if len(rows) != 1 or not wanted <= rows[0].keys():
        raise RecipeError("vela_output", f"the summary of vela lacks some of {', '.join(sorted(wanted))}")
    return compiled.read_bytes(), rows[0]


def _on_cpu(compiled: File, names: dict[str, FileOperator], said: str) -> tuple[OnCpu, ...]:
    """What the compiled file still holds as it was; an operator is known by the name of its output."""
    reasons = {found["name"]: found["reason"].strip() for found in _WARNING.finditer(said)}
    found = []
    for operator in compiled.operators:
        made = compiled.made(operator)
        if operator.kind == _ON_NPU or not made:
            continue
        name = made[0].name
        if name not in names:
            raise RecipeError("vela_output", f"vela made {operator.kind} {name!r}, which the file has not")
        reason = reasons.get(name, "")
        found.append(OnCpu(index=names[name].index, kind=operator.kind, name=name, reason=reason))
    return tuple(sorted(found, key=lambda one: one.index))
