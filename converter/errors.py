"""The converter's own errors.

For: telling the two kinds of trouble apart: what the user gave cannot be used (`InputError`, exit 2) and
one recipe did not work on this model (`RecipeError`, a row of the table).
Not for: an SLA that nothing meets; that is a result (exit 3) and no error.
"""

from __future__ import annotations

from wire.errors import ShallopError


class InputError(ShallopError):
    """The model, a data set, the target, the SLA or the output place cannot be used as given."""


class RecipeError(ShallopError):
    """A recipe cannot be applied to this model; the conversion goes on without it."""
