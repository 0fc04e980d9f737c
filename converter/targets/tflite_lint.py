"""Does a `.tflite` file keep a target's rules, and what is expected to run where?

For: `lint_file()`, every limit that an operator breaks, and `predict()`, operators and multiplications on the
accelerator. The file is read and nothing is run, so it serves targets whose compiler cannot be had here.
Not for: what a compiler really does (`converter.targets.vela` asks one), or ONNX graphs
(`converter.targets.lint`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from math import prod

from msgspec import Struct

from converter.targets.loader import Target
from converter.targets.tflite_checks import CHECKS, data_of, weight_of
from converter.targets.tflite_rules import TFLiteRules
from converter.tflite.reader import File, FileOperator

CPU, NOWHERE = "CPU", "nowhere"
_WORST = ("GPU", CPU, NOWHERE)


class FileFinding(Struct, frozen=True, kw_only=True):
    """One limit that an operator breaks, which runs elsewhere for it.

    Attributes:
        index: of the operator in the file.
        kind: of the operator, such as `CONV_2D`.
        name: of its first output.
        rule: the limit's check; `operators` where the accelerator has no such operator, `cut_once` where it
            stands behind one that is left to the CPU.
        words: what is wrong.
        runs_on: where it runs instead: `CPU`, `GPU`, or `nowhere` where the whole file is refused.
        confidence: how well the rule is known.
        source: where the rule comes from.
    """

    index: int
    kind: str
    name: str
    rule: str
    words: str
    runs_on: str
    confidence: str
    source: str


class FilePrediction(Struct, frozen=True, kw_only=True):
    """What is expected to run where.

    Attributes:
        operators: of the file.
        elsewhere: places of operators that do not run on the accelerator, with where they run.
        findings: why, in the file's order.
        share: of all multiplications, those on the accelerator; None where there are none.
    """

    operators: int
    elsewhere: dict[int, str]
    findings: tuple[FileFinding, ...]
    share: float | None

    @property
    def refused(self) -> bool:
        """Whether the compiler is expected to refuse the whole file."""
        return NOWHERE in self.elsewhere.values()

    @property
    def accelerated(self) -> int:
        """Number of operators on the accelerator."""
        return self.operators - len(self.elsewhere)


def lint_file(rules: TFLiteRules, file: File) -> tuple[FileFinding, ...]:
    """Every limit that an operator breaks, in the file's order; empty where no list of operators is known."""
    if not rules.operators.value:
        return ()
    return tuple(found for operator in file.operators for found in _broken(rules, file, operator))


def _broken(rules: TFLiteRules, file: File, operator: FileOperator) -> Iterator[FileFinding]:
    if operator.kind not in rules.operators.value:
        words = "it is not on the accelerator's list"
        listed = rules.operators
        yield _finding(file, operator, "operators", words, CPU, (listed.confidence, listed.source))
        return
    for limit in rules.limits:
        told = CHECKS[limit.check](file, operator, limit) if limit.about(operator.kind) else None
        if told is not None:
            known = (limit.confidence, limit.source)
            yield _finding(file, operator, limit.check, told, limit.runs_on, known)


def _finding(
    file: File, operator: FileOperator, rule: str, words: str, runs_on: str, known: tuple[str, str]
) -> FileFinding:
    made = file.made(operator)
    return FileFinding(
        index=operator.index, kind=operator.kind, name=made[0].name if made else "", rule=rule, words=words,
        runs_on=runs_on, confidence=known[0], source=known[1],
    )  # fmt: skip


def predict(target: Target, file: File) -> FilePrediction | None:
    """What runs where; None where the target has no accelerator for TFLite files."""
    rules = target.tflite
    if rules is None or not rules.operators.value:
        return None
    findings = [*lint_file(rules, file)]
    elsewhere: dict[int, str] = {}
    for one in findings:
        known = elsewhere.get(one.index, one.runs_on)
        elsewhere[one.index] = max(known, one.runs_on, key=_WORST.index)
    if rules.cut_once.value:
        behind = list(_behind(rules, file, elsewhere))
        elsewhere |= {one.index: CPU for one in behind}
        findings += behind
    return FilePrediction(
        operators=len(file.operators),
        elsewhere=dict(sorted(elsewhere.items())),
        findings=tuple(sorted(findings, key=lambda one: one.index)),
        share=share_of(file, elsewhere),
    )


def _behind(rules: TFLiteRules, file: File, elsewhere: Collection[int]) -> Iterator[FileFinding]:
    """What the accelerator would take but for what stands before it."""
    cut: FileOperator | None = None
    begun = False
    known = (rules.cut_once.confidence, rules.cut_once.source)
    for operator in file.operators:
        if operator.index not in elsewhere:
            begun = True
            if cut is not None:
                words = f"it stands behind {cut.kind} {cut.index}, where the compiler cuts"
                yield _finding(file, operator, "cut_once", words, CPU, known)
        elif cut is None and (begun or operator.kind not in rules.before.value):
            cut = operator


def share_of(file: File, elsewhere: Collection[int]) -> float | None:
    """Of all multiplications, those of operators that are not `elsewhere`; None where there are none."""
    counts = {one.index: multiplications(file, one) for one in file.operators}
    whole = sum(counts.values())
    return sum(n for index, n in counts.items() if index not in elsewhere) / whole if whole else None


def multiplications(file: File, operator: FileOperator) -> int:
    """Of one operator for the file's batch.

    Convolutions: elements of the output times those of one filter; transposed ones: elements of the input
    times what each spreads over; matrices: elements of the output times the shared axis.
    """
    weight, made = weight_of(file, operator), file.made(operator)
    if operator.kind == "BATCH_MATMUL":
        data = data_of(file, operator)[0].shape
        return prod(made[0].shape) * data[-2 if operator.option("adjX") else -1]
    if weight is None:
        return 0
    if operator.kind == "DEPTHWISE_CONV_2D":
        return prod(made[0].shape) * prod(weight.shape[1:3])
    if operator.kind == "TRANSPOSE_CONV":
        return prod(data_of(file, operator)[0].shape) * prod(weight.shape[:3])
    if operator.kind == "FULLY_CONNECTED":
        return prod(made[0].shape) * weight.shape[-1]
    return prod(made[0].shape) * prod(weight.shape[1:])


def counted(file: File, places: Collection[int]) -> dict[str, int]:
    """How many operators of each kind stand at those places, the most first."""
    kinds = Counter(file.operators[place].kind for place in places)
    return dict(sorted(kinds.items(), key=lambda one: (-one[1], one[0])))
