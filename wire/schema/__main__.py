"""Writes the generated files: `python -m wire.schema`."""

from __future__ import annotations

from pathlib import Path

from wire.schema import render

for name, text in render().items():
    (Path(__file__).parent / name).write_text(text, encoding="utf-8")
