"""PURE. The arithmetic in which a delta's encoder and decoder must agree to the last bit.

For: the tables that follow what was seen, and what an element is predicted to be. It stands here once and
not at each end, and gets `numpy` as an argument, for wire imports the standard library and msgspec only.
Integers, and of floats only products, quotients, sums and rounding, which IEEE 754 makes the same on every
machine; no logarithm and no exponential.
Not for: coding (`fleet.deltas.tokens`), decoding (`agent.worker.delta_tokens`).
"""

from __future__ import annotations

from typing import Any

from wire import delta_format as df

GAIN_MAX = 1e12
"""Beyond it, a ratio is taken for 1, as is one that is no number: products stay finite."""

Array = Any
"""A numpy array; its type cannot be named without importing numpy."""


class Model:
    """Frequencies of tokens, one table for each class of activity, that follow what was seen.

    Attributes:
        magnitudes: of each token.
        frequencies: by table and token, flat.
        starts: where each token's share begins, plus the table's number times `TOTAL`: rising throughout.
    """

    def __init__(self, np: Any, kind: int) -> None:  # noqa: ANN401 - the module numpy
        """Tables before anything was seen."""
        self._np, self._kind = np, kind
        narrow = kind == df.BYTES
        self.magnitudes = np.array(df.narrow_magnitudes() if narrow else df.wide_magnitudes(), dtype=np.int64)
        self._narrow = np.array(df.narrow_classes(), dtype=np.int64) if narrow else None
        self._counts = np.array(df.priors(kind), dtype=np.int64).ravel()
        self._seen, self._next = 0, df.REBUILD_FIRST
        self._base = np.arange(self._counts.size // 256, dtype=np.int64)[:, None] << df.PRECISION_BITS
        self.rebuild()

    def rebuild(self) -> None:
        """Frequencies from the counts: each at least 1, all of a table together `TOTAL`."""
        np = self._np
        counts = self._counts.reshape(-1, 256)
        share = 1 + counts * (df.TOTAL - 256) // counts.sum(axis=1, keepdims=True)
        share[np.arange(len(share)), counts.argmax(axis=1)] += df.TOTAL - share.sum(axis=1)
        self.frequencies = share.ravel()
        self.starts = (np.cumsum(share, axis=1) - share + self._base).ravel()

    def first_activity(self, known: Array) -> Array:
        """Of the lanes, at a stream's beginning; `known` is that of each lane's first element."""
        return known * 0 if self._kind == df.BYTES else known + df.WIDE_START

    def tables(self, activity: Array, known: Array) -> Array:
        """Number of the table that each lane uses, times `TOTAL`."""
        if self._narrow is not None:
            return (self._narrow[activity] * df.FRACTIONS + known) << df.PRECISION_BITS
        steps = (activity - known) >> df.WIDE_SHIFT
        return self._np.clip(steps, 0, df.WIDE_CLASSES - 1) << df.PRECISION_BITS

    def follow(self, activity: Array, tokens: Array, known: Array) -> None:
        """Moves the activity in place; that of wide elements counts from their prediction's exponent."""
        seen = self.magnitudes[tokens] - activity
        if self._narrow is None:
            seen += known
        activity += seen >> df.ACTIVITY_SHIFT

    def saw(self, entries: Array) -> None:
        """Counts tokens by their place in the tables."""
        self._counts += df.INCREMENT * self._np.bincount(entries, minlength=self._counts.size)
        heavy = self._counts.reshape(-1, 256).sum(axis=1) > df.COUNTS_MAX
        self._counts.reshape(-1, 256)[heavy] -= self._counts.reshape(-1, 256)[heavy] >> 1

    def due(self, count: int) -> bool:
        """Whether the tables are to be made again, now that so many more tokens have passed."""
        self._seen += count
        if self._seen < self._next:
            return False
        self._next = self._seen + min(df.REBUILD_MAX, max(df.REBUILD_FIRST, self._seen >> df.REBUILD_SHIFT))
        return True


def by_step(np: Any, values: Array, lanes: int) -> Array:  # noqa: ANN401
    """A block's elements as [step, lane]: each lane has a run of neighbours; the last are padded with 0."""
    steps = -(-len(values) // lanes)
    padded = np.zeros(steps * lanes, dtype=np.int64)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(lanes, steps).T)


def active(count: int, steps: int, step: int) -> int:
    """How many lanes have an element at that step: the first ones."""
    return (count - step + steps - 1) // steps


def present(np: Any, count: int, shape: tuple[int, int], first: int, last: int) -> Array:  # noqa: ANN401
    """Which places of the steps from `first` to `last` hold an element."""
    steps, lanes = shape
    return np.arange(lanes)[None, :] * steps + np.arange(first, last)[:, None] < count


def ordered(np: Any, kind: int, data: Array) -> Array:  # noqa: ANN401
    """Elements, as little-endian bytes, as integers in the order of their values."""
    integers = data.view({2: "<i2", 4: "<i4"}[df.WIDTHS[kind]]).astype(np.int64)
    if kind in {df.FLOAT16, df.FLOAT32}:
        low = (1 << (8 * df.WIDTHS[kind] - 1)) - 1
        integers = np.where(integers < 0, integers ^ low, integers)
    return integers


def from_ordered(np: Any, kind: int, integers: Array) -> Array:  # noqa: ANN401
    """The bytes of such integers; they wrap around."""
    width = df.WIDTHS[kind]
    narrowed = integers.astype({2: "<i2", 4: "<i4"}[width])
    if kind in {df.FLOAT16, df.FLOAT32}:
        narrowed = np.where(
            narrowed < 0, narrowed ^ narrowed.dtype.type((1 << (8 * width - 1)) - 1), narrowed
        )
    return narrowed.astype({2: "<i2", 4: "<i4"}[width]).view(np.uint8)


def exponents(np: Any, kind: int, prediction: Array) -> Array:  # noqa: ANN401
    """Of predicted floats, in units of activity; 0 for integers."""
    if kind not in {df.FLOAT16, df.FLOAT32}:
        return np.zeros(len(prediction), dtype=np.int64)
    low, shift = (0x7FFF, 10) if kind == df.FLOAT16 else (0x7FFFFFFF, 23)
    return ((np.where(prediction < 0, prediction ^ low, prediction) & low) >> shift) * df.BIT


def ratios(np: Any, scaling: df.Scaling, base: Array, new: Array, first: int, count: int) -> Array:  # noqa: ANN401
    """By what each of `count` elements from `first` on is scaled.

    Args:
        np: the module numpy.
        scaling: whose `inner` and `gain` count.
        base: the float32 vector in the base; empty where there is none.
        new: that in the new file.
        first: number of the tensor's first element that is wanted.
        count: how many are.
    """
    if not len(base):
        return np.full(count, scaling.gain if abs(scaling.gain) < GAIN_MAX else 1.0)
    above, below = (new, base) if scaling.inverse else (base, new)
    with np.errstate(all="ignore"):
        quotients = above.astype(np.float64) / below.astype(np.float64) * scaling.gain
    quotients[~(np.abs(quotients) < GAIN_MAX)] = 1.0
    return quotients[(np.arange(first, first + count) // scaling.inner) % len(quotients)]


def predicted_bytes(np: Any, old: Array, factors: Array, zero: int) -> tuple[Array, Array, Array]:  # noqa: ANN401
    """Scaled bytes, the number of each one's fraction, and where the fraction is negative.

    A fraction's number is 0 where there is none, else it counts the thirds of the way to a half. Where it
    is negative, the sign of the difference is turned, so that one table serves both.
    """
    signed = ((old.astype(np.int64) - zero + 128) & 255) - 128
    with np.errstate(all="ignore"):
        exact = np.clip(signed * factors, -128.0, 127.0)
    whole = np.rint(exact)
    rest = exact - whole
    number = np.where(rest == 0.0, 0, 1 + np.minimum(2, (np.abs(rest) * 6.0).astype(np.int64)))
    return (whole.astype(np.int64) + zero) & 255, number, rest < 0.0


def predicted_wide(np: Any, kind: int, data: Array, factors: Array) -> Array:  # noqa: ANN401
    """Scaled elements of a wide kind, ordered; 0 for what is not finite."""
    with np.errstate(all="ignore"):
        if kind == df.INT32:
            exact = np.rint(data.view("<i4").astype(np.float64) * factors)
            return np.clip(exact, -(2.0**31), 2.0**31 - 1).astype(np.int64)
        if kind == df.INT16:
            exact = np.rint(data.view("<i2").astype(np.float64) * factors)
            return np.clip(exact, -(2.0**15), 2.0**15 - 1).astype(np.int64)
        form = "<f2" if kind == df.FLOAT16 else "<f4"
        exact = (data.view(form).astype(np.float64) * factors).astype(form)
    exact[~np.isfinite(exact)] = 0
    return ordered(np, kind, np.ascontiguousarray(exact).view(np.uint8))
