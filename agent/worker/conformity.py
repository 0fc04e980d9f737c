"""The same variant on two machines: whether the device computes what the host computed.

For: the cross-architecture check of a trial. The host's outputs of this very variant travel with the shard;
the device's are equal, within one quantization step, or diverge, and then the place is told. What lies
between input and output does not travel, so the operator at which two machines part is not known here; the
converter knows how its twins compare, operator by operator (`wire.bundle.Parity`).
Not for: right or wrong (`agent.worker.answers`), or what follows from it (`agent.judging`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.worker.shards import Arrays
from wire.measures import Conformance, Divergence

LEVELS_MAX = 512
"""Of an output that is told to be quantized: eight bits, twice over."""
_VALUES_MIN = 8
"""Fewer different values lie on a lattice by chance."""
_OFF_LATTICE_MAX = 0.05
"""How far from a multiple of its step a value may lie: float32 rounds a product of 255 steps by far less."""
_ROUNDING = 1.01
_SAME = 1e-6
"""Of the largest value: less is the same value, computed in another order."""
_LARGEST = float(np.finfo(np.float64).max)
"""JSON has no infinity; a difference that is no number is told by the largest one there is."""


def conformance(outputs: Arrays, host: Arrays, answers: NDArray[np.bool_]) -> Conformance:
    """The comparison on the host's own samples.

    Args:
        outputs: the device's, by name.
        host: the host's, of the same shapes.
        answers: on which samples the two give the same answer (`wire.agreement.same_answers`).
    """
    n = len(answers)
    equal, within = np.ones(n, np.bool_), np.ones(n, np.bool_)
    steps = {name: step_of(reference) for name, reference in host.items()}
    worst, first = 0.0, None
    for name, reference in host.items():
        apart = difference(outputs[name], reference).reshape(n, -1)
        step = steps[name]
        equal &= (apart == 0.0).all(axis=1)
        beyond = apart > (0.0 if step is None else step * _ROUNDING)
        within &= ~beyond.any(axis=1)
        worst = max(worst, float(apart.max(initial=0.0)))
        if first is None and beyond.any():
            first = _place(name, apart, outputs[name], reference, step)
    told = bool(equal.all()) or None not in steps.values()
    return Conformance(
        n=n,
        equal=float(equal.mean()),
        within_step=float(within.mean()) if told else None,
        same_answer=float(answers.mean()),
        worst=worst,
        conforms=bool(answers.all()),
        divergence=first,
    )


def difference(own: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Absolute difference of each element; equal bits differ by nothing, NaN from a number by the most."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(own.astype(np.float64) - reference.astype(np.float64))
    both_nan = (own != own) & (reference != reference)  # noqa: PLR0124 - what NaN is known by
    alike = (own == reference) | both_nan
    bounded: NDArray[np.float64] = np.nan_to_num(np.where(alike, 0.0, apart), nan=_LARGEST, posinf=_LARGEST)
    return bounded


def step_of(values: NDArray[Any]) -> float | None:
    """The step between neighbouring values of a quantized output; None where it does not look like one.

    Integers have a step of one. Real values of a quantized tensor are multiples of its scale, shifted by its
    zero point: all their differences are multiples of one number, the smallest of them if the samples show
    any two neighbours.
    """
    if values.dtype.kind in "iub":
        return 1.0
    found = np.unique(values[np.isfinite(values)].astype(np.float64))
    if len(found) < _VALUES_MIN:
        return None
    gaps = np.diff(found)
    gaps = gaps[gaps > _SAME * np.abs(found).max()]
    if len(gaps) < _VALUES_MIN - 1:
        return None
    # Neighbours that lie one step apart, each rounded in its own way; their mean is rounded less.
    step = float(gaps[gaps < gaps.min() * 1.5].mean())
    levels = (found - found[0]) / step
    if levels[-1] > LEVELS_MAX or np.abs(levels - np.rint(levels)).max() > _OFF_LATTICE_MAX:
        return None
    return step


def _place(
    name: str, apart: NDArray[np.float64], own: NDArray[Any], reference: NDArray[Any], step: float | None
) -> Divergence:
    """Where an output is furthest from the host's."""
    sample, element = np.unravel_index(int(apart.argmax()), apart.shape)
    place = np.unravel_index(int(element), own.shape[1:]) if own.ndim > 1 else ()
    largest = float(apart[sample, element])
    return Divergence(
        output=name,
        sample=int(sample),
        element=tuple(int(index) for index in place),
        device=_finite(own.reshape(len(own), -1)[sample, element]),
        host=_finite(reference.reshape(len(own), -1)[sample, element]),
        difference=largest,
        steps=None if step is None else min(largest / step, _LARGEST),
    )


def _finite(value: Any) -> float | None:  # noqa: ANN401 - of whichever type the output has
    return float(value) if np.isfinite(value) else None
