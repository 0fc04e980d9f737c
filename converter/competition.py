"""Which rows of a conversion compete.

For: telling those among which the choice is made from those that stand beside it: rows of another format than
is wanted, and of a runtime in which nothing is timed here.
Not for: the choice itself (`converter.candidates`).
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.attempts import LITERT, TFLITE_RUNTIME, variant_id
from converter.candidates import Candidate, Choice, choose
from converter.inputs import Inputs
from converter.recipe import FLOAT32


def chosen_of(inputs: Inputs, baseline: Candidate, rows: Sequence[Candidate]) -> Choice:
    """The choice among all rows but FP32's own, in the order of preference."""
    untimed = [row for row in rows if row.runtime == TFLITE_RUNTIME]
    fp32, competing = competitors(inputs, baseline, [row for row in rows if row not in untimed])
    return choose(
        fp32,
        competing,
        inputs.limits,
        host_of_target_class=inputs.host_of_target_class,
        untimed=untimed,
    )


def competitors(
    inputs: Inputs, baseline: Candidate, rows: Sequence[Candidate]
) -> tuple[Candidate, list[Candidate]]:
    """FP32's row, and the others among which the choice is made.

    Where only TFLite is wanted only its rows compete, and FP32 is that of its runtime.
    """
    if inputs.form != "tflite":
        return baseline, list(rows)
    mine = [row for row in rows if row.runtime == LITERT]
    key = variant_id(FLOAT32, LITERT)
    return next(row for row in mine if row.id == key), [row for row in mine if row.id != key]
