"""PURE. One rule of a target, with where it comes from.

For: every value of a profile. `V` read in source or documentation or measured, `S` seen in a search excerpt,
`M` from memory.
Not for: reading the profiles (`converter.targets.loader`).
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from msgspec import Meta, Struct

T = TypeVar("T")

Confidence = Literal["V", "S", "M"]
Source = Annotated[str, Meta(min_length=1, max_length=400)]


class Rule(Struct, Generic[T], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule with where it comes from."""

    value: T
    confidence: Confidence
    source: Source


def plain_rule(value: T) -> Rule[T]:
    """The plain case of a rule, where a profile says nothing of it."""
    return Rule(value=value, confidence="M", source="the plain case; the profile says nothing of it")
