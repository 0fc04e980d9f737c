"""`python -m converter.cli`: the same as `shallop-convert`."""

from __future__ import annotations

from converter.cli import main

main()
