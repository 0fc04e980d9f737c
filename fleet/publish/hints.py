"""PURE. Which deltas are worth making for a release, and which of them an order offers.

For: the bases that most devices hold of what the release's variants replace, at most `BASES_MAX` for each
file; whether a delta saves enough; the hints of a release.
Not for: making deltas (`fleet.publish.shelf`), or choosing devices (`fleet.selection`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct

from fleet.inventory import Device
from wire.bundle import File, Manifest, Variant
from wire.deltas import HINTS_MAX, DeltaHint
from wire.types import Digest, Positive

BASES_MAX = 3
SAVING_MIN = 0.3
"""A delta travels where it saves at least this share of the chunks that a device with the base lacks."""


class Wanted(Struct, frozen=True):
    """A delta that may pay."""

    base: File
    new: File

    @property
    def key(self) -> tuple[str, str]:
        """Of the two contents."""
        return self.base.sha256, self.new.sha256


class Made(Struct, frozen=True, kw_only=True):
    """A delta that was tried; no hint where it saves too little, or could not be made.

    Attributes:
        base: of the file that devices hold.
        new: of the file that it makes.
        blobs: sizes of index and chunks, as they lie in the blob store.
    """

    base: Digest
    new: Digest
    hint: DeltaHint | None = None
    blobs: Annotated[dict[Digest, Positive], Meta(max_length=10_000)] = {}


def wanted(
    manifest: Manifest, devices: Iterable[Device], manifests: Mapping[str, Manifest]
) -> tuple[Wanted, ...]:
    """Deltas for the release's model files, those for the most devices first.

    A device's base for a variant is the model file of the variant in its active or previous slot, of the
    same model, runtime and precision.

    Args:
        manifest: of the release.
        devices: the fleet.
        manifests: of the releases that devices report, by digest.
    """
    held: Counter[tuple[str, str]] = Counter()
    for device in devices:
        state = device.models.get(manifest.model)
        slots = () if state is None else (state.active, state.previous)
        found = {(one.digest, one.variant) for one in slots if one is not None}
        held.update(found)
    counted: Counter[Wanted] = Counter()
    for (digest, variant_id), count in held.items():
        old = manifests.get(digest)
        variant = None if old is None else old.variant(variant_id)
        if variant is not None:
            for new in manifest.variants:
                counted.update(dict.fromkeys(_between(variant, new), count))
    chosen: Counter[str] = Counter()
    listed: list[Wanted] = []
    for one, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0].key)):
        if chosen[one.new.sha256] < BASES_MAX and len(listed) < HINTS_MAX:
            chosen[one.new.sha256] += 1
            listed.append(one)
    return tuple(listed)


def _between(old: Variant, new: Variant) -> list[Wanted]:
    if (old.runtime, old.precision) != (new.runtime, new.precision):
        return []
    base, file = model_file(old), model_file(new)
    return [] if base is None or file is None or base.sha256 == file.sha256 else [Wanted(base, file)]


def model_file(variant: Variant) -> File | None:
    """The file that holds the variant's weights."""
    return next((file for file in variant.files if file.path == variant.model_path), None)


def lacking_bytes(one: Wanted) -> int:
    """Of the chunks that a device lacks which holds the base's."""
    there = {chunk.sha256 for chunk in one.base.chunks}
    sizes = {chunk.sha256: chunk.size_bytes for chunk in one.new.chunks if chunk.sha256 not in there}
    return sum(sizes.values())


def pays(one: Wanted, delta_bytes: int) -> bool:
    """Whether a delta that costs so much, its index included, saves enough."""
    return delta_bytes <= (1.0 - SAVING_MIN) * lacking_bytes(one)
