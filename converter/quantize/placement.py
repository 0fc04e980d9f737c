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
    runs what LiteRT has INT8 kernels for, with 32-bit biases always, for its kernels know no others.
    """
    taken = (ACCELERATOR if rules.whole.value else CPU).operators
    taken = (frozenset(TWIN_OPERATORS) if twin else taken) - set(rules.exclude.value)
    listed = set(rules.operators.value)
    return Placement(
        operators=frozenset(taken & listed if listed else taken),
        whole=rules.whole.value,
        biases=twin or rules.quantize_bias.value,
        fused_activations=rules.fused_activations.value and not twin,
    )
