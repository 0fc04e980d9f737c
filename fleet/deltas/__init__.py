"""Deltas between two versions of a model's file, made where the registry is."""
