"""The encoder of a delta's streams: from tokens to a range coder's words.

For: the twin of `agent.worker.delta_tokens`: it walks the tokens in the decoder's order to learn which
table each one meets, then codes them backwards, as rANS wants.
Not for: what tokens mean (`fleet.deltas.elements`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wire import delta_format as df
from wire.delta_model import Model, active, by_step, present

Ints = NDArray[np.int64]
Met = list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]
"""For each step, each lane's frequency and start."""

ELEMENTS_PER_LANE = 1024
BYTES_PER_LANE = 256


def lanes_for(elements: int, bits: float) -> int:
    """How many lanes: more are faster to decode, and each costs four of the stream's bytes."""
    cheap = min(elements // ELEMENTS_PER_LANE, int(bits) // 8 // BYTES_PER_LANE)
    return max(1, min(df.LANES_MAX, max(cheap, elements // (df.STEPS_MAX // 2))))


def code(kind: int, tokens: NDArray[np.uint8], known: Ints, lanes: int) -> bytes:
    """A stream's states and words.

    Args:
        kind: of the elements.
        tokens: of all elements.
        known: as the decoder's `TokenReader.block` takes it.
        lanes: as in the stream's entry of the head.
    """
    met: Met = []
    model, activity = Model(np, kind), None
    for first in range(0, len(tokens), df.BLOCK_ELEMENTS):
        part = slice(first, first + df.BLOCK_ELEMENTS)
        told, values = by_step(np, known[part], lanes), by_step(np, tokens[part], lanes)
        if activity is None:
            activity = model.first_activity(told[0])
        _walk(model, activity, (values, told), len(tokens[part]), met)
    return _backwards(met, lanes)


def _walk(model: Model, activity: Ints, block: tuple[Ints, Ints], count: int, met: Met) -> None:
    """One block in the decoder's order."""
    tokens, known = block
    entries = np.zeros(tokens.shape, dtype=np.int64)
    counted, steps = 0, len(tokens)
    for step in range(steps):
        now = active(count, steps, step)
        token, told, lately = tokens[step, :now], known[step, :now], activity[:now]
        tables = model.tables(lately, told)
        found = (tables >> (df.PRECISION_BITS - 8)) | token
        entries[step, :now] = found
        share = model.frequencies[found].astype(np.uint32), (model.starts[found] - tables).astype(np.uint32)
        met.append(share)
        model.follow(lately, token, told)
        if model.due(now):
            model.saw(entries[counted : step + 1][present(np, count, tokens.shape, counted, step + 1)])
            counted = step + 1
            model.rebuild()
    model.saw(entries[counted:][present(np, count, tokens.shape, counted, steps)])


def _backwards(met: Met, lanes: int) -> bytes:
    states = np.full(lanes, df.STATE_MIN, dtype=np.int64)
    words: list[bytes] = []
    for frequencies, starts in reversed(met):
        state, share = states[: len(frequencies)], frequencies.astype(np.int64)
        full = np.flatnonzero(state >= share << 16)
        if len(full):
            words.append((state[full] & 0xFFFF).astype("<u2").tobytes())
            state[full] >>= 16
        state[:] = ((state // share) << df.PRECISION_BITS) + state % share + starts
    return states.astype("<u4").tobytes() + b"".join(reversed(words))
