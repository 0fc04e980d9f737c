"""Deltas between two versions of a model, beside the tools that users would take."""
