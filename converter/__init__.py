"""A trained FP32 model in, a measured and gated bundle out.

For: `convert()`, the Python form of `shallop-convert`; importing this package loads neither numpy nor a
runtime, which come with the first call.
Not for: devices (agent) or publishing (fleet).

Example::

    from converter import convert

    conversion = convert(
        "fashion.onnx", calibration="calibration.npz", validation="validation.npz",
        target="host", sla="sla.yaml", output="bundle",
    )
    print(conversion.report.chosen)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.pipeline import convert

__all__ = ["convert"]


def __getattr__(name: str) -> object:
    """Loads `convert` when it is first asked for (PEP 562)."""
    if name == "convert":
        from converter.pipeline import convert  # noqa: PLC0415 - numpy and the runtime load here

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
