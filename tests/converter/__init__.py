"""Tests of the converter, on real small models and the real runtime."""
