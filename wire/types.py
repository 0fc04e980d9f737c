r"""The constrained words that messages and manifests are made of.

For: one place where the shape of an identifier is decided; msgspec checks them while it decodes and
the generated JSON Schemas carry them.
Not for: meaning. Whether a device or a release exists is the registry's question.

The patterns end in `(?!\n)$`: Python's `$` alone also matches before a trailing newline.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

DeviceId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(?!\n)$")]
GroupName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(?!\n)$")]
ModelName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(?!\n)$")]
ReleaseName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(?!\n)$")]
VariantId = Annotated[str, Meta(pattern=r"^[a-z0-9_]+/[a-z0-9_]{1,120}(?!\n)$")]
"""`runtime/recipe`, such as `onnxruntime/static_wi8_au8_pc_minmax`."""

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]
"""SHA-256 in lower-case hexadecimal."""

InstallId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}(?!\n)$")]
"""Random, made when an agent's state directory is; two of them under one device id are two devices."""

RelativePath = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}(?!\n)$",
        max_length=200,
    ),
]
"""A path inside a bundle: no absolute path, no `..`, no hidden file, at most eight levels."""

Code = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}(?!\n)$")]
"""A reason's stable name."""

Text = Annotated[str, Meta(max_length=2000)]
"""Words for a person."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]
"""A short free name: a tensor, a label, a version."""

Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0, le=366 * 86400.0)]
