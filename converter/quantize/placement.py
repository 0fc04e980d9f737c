"""From a target's rules to where a plan puts integers.

For: the one link between targets as data (`converter.targets`) and plans (`converter.quantize.plan`).
Not for: types and scales; those are the recipe's.
"""

from __future__ import annotations

from converter.quantize.operators import ACCELERATOR, CPU, Placement
from converter.quantize.twin_rules import TWIN_OPERATORS
from converter.targets.loader import Rules


def placement_of(rules: Rules, *, twin: bool = False) -> Placement:
    """What those rules say; a class of CPU gets `CPU` itself.

    Operators that are excluded, or not on an accelerator's list where there is one, stay in float. A twin
    runs whatever LiteRT has INT8 kernels for, whose biases are always integers: what an accelerator does not
    take, its CPU runs, and in integers too.
    """
    if twin:
        return Placement(operators=frozenset(TWIN_OPERATORS), whole=rules.whole.value)
    taken = (ACCELERATOR if rules.whole.value else CPU).operators - set(rules.exclude.value)
    listed = set(rules.operators.value)
    return Placement(
        operators=frozenset(taken & listed if listed else taken),
        whole=rules.whole.value,
        biases=rules.quantize_bias.value,
        fused_activations=rules.fused_activations.value,
    )
