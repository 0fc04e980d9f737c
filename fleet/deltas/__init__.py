"""Deltas between two versions of a model's file, made where the registry is."""

NOT_PAYING = 3
"""Exit code of the encoder's process where a delta would not be smaller."""
