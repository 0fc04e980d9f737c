"""The decoder of a delta's streams: from a range coder's words to tokens, a block at a time.

For: the rANS decoder, all lanes of a step at once in numpy; the tables are `wire.delta_model`'s.
Words that no encoder wrote give wrong tokens and nothing worse: each index lies in its table by
construction, and the end of the words is checked.
Not for: what tokens mean (`agent.worker.delta_elements`).

The encoder's twin is `fleet.deltas.tokens`.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wire import delta_format as df
from wire.delta_model import Model, active, by_step, present
from wire.errors import ContentError

Ints = NDArray[np.int64]

_WORDS_AHEAD = 64 * 1024


class TokenReader:
    """Tokens of one stream."""

    def __init__(self, file: BinaryIO, stream: df.Stream) -> None:
        """Reads the lanes' states; `file` stands where the stream's tokens begin.

        Raises:
            ContentError: `delta_truncated`.
        """
        self._file, self._left = file, stream.token_bytes
        self._kind, self._lanes = stream.kind, stream.lanes
        self._words: NDArray[np.uint16] = np.zeros(0, dtype="<u2")
        self._at = 0
        states = self._read(4 * stream.lanes)
        if len(states) != 4 * stream.lanes:
            raise truncated("a stream's tokens end")
        self._states = np.frombuffer(states, dtype="<u4").astype(np.int64)
        self._activity: Ints | None = None
        self._model = Model(np, stream.kind)

    def block(self, known: Ints) -> NDArray[np.uint8]:
        """As many tokens as `known` has elements.

        Args:
            known: what the decoder knows of each element: its fraction's number (BYTES), or the exponent of
                its prediction in units of activity.

        Raises:
            ContentError: `delta_truncated`.
        """
        count, lanes = len(known), self._lanes
        told = by_step(np, known, lanes)
        if self._activity is None:
            self._activity = self._model.first_activity(told[0])
        entries = np.zeros(told.shape, dtype=np.int64)
        counted, steps = 0, len(told)
        for step in range(steps):
            now = active(count, steps, step)
            entries[step, :now] = self._step(self._activity[:now], told[step, :now])
            if self._model.due(now):
                self._model.saw(
                    entries[counted : step + 1][present(np, count, told.shape, counted, step + 1)]
                )
                counted = step + 1
                self._model.rebuild()
        self._model.saw(entries[counted:][present(np, count, told.shape, counted, steps)])
        return (entries & 255).astype(np.uint8).T.reshape(-1)[:count]

    def _step(self, activity: Ints, known: Ints) -> Ints:
        """One token from each active lane, as its place in the tables."""
        model, state = self._model, self._states[: len(known)]
        keys = model.tables(activity, known) | (state & (df.TOTAL - 1))
        found: Ints = np.searchsorted(model.starts, keys, side="right") - 1
        state[:] = model.frequencies[found] * (state >> df.PRECISION_BITS) + keys - model.starts[found]
        hungry = np.flatnonzero(state < df.STATE_MIN)
        if len(hungry):
            state[hungry] = (state[hungry] << 16) | self._next_words(len(hungry))
        model.follow(activity, found & 255, known)
        return found

    def _next_words(self, count: int) -> Ints:
        if self._at + count > len(self._words):
            rest = self._words[self._at :]
            fresh = np.frombuffer(self._read(2 * _WORDS_AHEAD), dtype="<u2")
            self._words, self._at = np.concatenate([rest, fresh]), 0
            if count > len(self._words):
                raise truncated("a stream's tokens end")
        words = self._words[self._at : self._at + count]
        self._at += count
        return words.astype(np.int64)

    def _read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data if len(data) % 2 == 0 else data[:-1]


def truncated(what: str) -> ContentError:
    """The error of a delta that holds less than it says."""
    return ContentError("delta_truncated", f"{what} before the last element; the delta is damaged")
