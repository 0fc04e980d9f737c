"""Everything that a target says of a `.tflite` file, in words for its row.

For: `file_verdict()`: broken limits, what is expected to run where, and what a compiler made of it where
there is one.
Not for: ONNX graphs (`converter.targets.fallback.verdict`).
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from converter.errors import RecipeError
from converter.targets.fallback import Verdict
from converter.targets.loader import Target
from converter.targets.tflite_lint import FileFinding, FilePrediction, counted, predict
from converter.targets.vela import Compiled, OnCpu, compile_file
from converter.tflite.reader import File, read_file

_KINDS_NAMED_MAX = 5
_REASONS_MAX = 3


class FileVerdict(Verdict, frozen=True, kw_only=True):
    """The same of a file, with what a compiler made of it; None where none was asked or it refused."""

    compiled: Compiled | None = None


def file_verdict(target: Target, content: bytes, vela: Path | None = None) -> FileVerdict:
    """What the rules, and the compiler where it is given, say of the file.

    Args:
        target: whose device runs it.
        content: the .tflite file.
        vela: the compiler's program (`converter.targets.vela.find_vela`); None to predict only.

    Raises:
        TFLiteError: `tflite_malformed`: the content is no .tflite file.
    """
    file = read_file(content)
    expected = predict(target, file)
    if expected is None:
        return FileVerdict(words=(), errors=0, falls_back=None)
    settings = None if target.tflite is None else target.tflite.vela.value
    if settings is None or vela is None:
        return _predicted(target, file, expected)
    try:
        compiled = compile_file(vela, settings, content)
    except RecipeError as error:
        return FileVerdict(words=(f"not compiled, not run: {error.args[0]}",), errors=1, falls_back=None)
    return FileVerdict(
        words=(_compiled(compiled), *_otherwise(expected, compiled)),
        errors=0,
        falls_back=bool(compiled.on_cpu),
        compiled=compiled,
    )


def _predicted(target: Target, file: File, expected: FilePrediction) -> FileVerdict:
    words = [] if target.not_compiled is None else [target.not_compiled]
    causes = sorted((one for one in expected.findings if one.rule != "operators"), key=_place)
    words += [_told(target, list(alike)) for _, alike in groupby(causes, key=_place)]
    words.append(_expected(target, file, expected))
    return FileVerdict(
        words=tuple(words), errors=int(expected.refused), falls_back=bool(expected.elsewhere)
    )  # fmt: skip


def _place(finding: FileFinding) -> tuple[str, str]:
    return finding.rule, finding.runs_on


def _told(target: Target, alike: list[FileFinding]) -> str:
    """One sentence for all operators that break one rule alike; `alike` is not empty."""
    first = alike[0]
    more = f" and {len(alike) - 1} more like it" if len(alike) > 1 else ""
    ends = "the compiler refuses the file" if first.runs_on == "nowhere" else f"runs on the {first.runs_on}"
    return (
        f"{target.id}, {first.rule}: {first.kind} {first.index} {ends}: {first.words}{more} "
        f"({first.confidence}: {first.source})"
    )


def _expected(target: Target, file: File, expected: FilePrediction) -> str:
    """The prediction in words."""
    if expected.refused:
        return "predicted, not compiled: the compiler refuses the file"
    share = "" if expected.share is None else f", {expected.share:.0%} of the multiplications"
    kinds = list(counted(file, expected.elsewhere).items())
    named = ", ".join(f"{kind} {count}" for kind, count in kinds[:_KINDS_NAMED_MAX])
    rest = f" and {len(kinds) - _KINDS_NAMED_MAX} kinds more" if len(kinds) > _KINDS_NAMED_MAX else ""
    left = f"; elsewhere {named}{rest}" if kinds else "; nothing elsewhere"
    known = None if target.tflite is None else target.tflite.operators
    source = "" if known is None else f" ({known.confidence}: {known.source})"
    return (
        f"predicted, not compiled: {expected.accelerated} of {expected.operators} operators on the "
        f"accelerator{share}{left}{source}"
    )


def _compiled(found: Compiled) -> str:
    """What the compiler did, and its estimates under their name."""
    accelerated = found.operators - len(found.on_cpu)
    share = "" if found.share is None else f", {found.share:.0%} of the multiplications"
    left = "; ".join(_left(one) for one in found.on_cpu[:_REASONS_MAX])
    rest = f" and {len(found.on_cpu) - _REASONS_MAX} more" if len(found.on_cpu) > _REASONS_MAX else ""
    on_cpu = f"; on the CPU {left}{rest}" if found.on_cpu else "; nothing on the CPU"
    return (
        f"compiled by vela {found.version} for {found.accelerator}, not run on the NPU: {accelerated} of "
        f"{found.operators} operators on the NPU{share}{on_cpu}; estimated by vela ({found.system}, "
        f"{found.memory}): {found.cycles_estimated} cycles, {found.inference_ms_estimated:.3g} ms, "
        f"{found.sram_kib_estimated:.0f} KiB of SRAM"
    )


def _left(one: OnCpu) -> str:
    return f"{one.kind} {one.index}" + (f" ({one.reason})" if one.reason else "")


def _otherwise(expected: FilePrediction, found: Compiled) -> tuple[str, ...]:
    """Where the prediction was wrong, so that nobody believes it elsewhere."""
    real = {one.index for one in found.on_cpu}
    if not expected.refused and real == set(expected.elsewhere):
        return ()
    said = "that it is refused" if expected.refused else f"{len(expected.elsewhere)} elsewhere"
    return (f"the rules predicted {said}; the compiler's word counts",)
