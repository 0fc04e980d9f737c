"""Targets as data: one YAML file each, and the loader.

For: what a device class can run and likes best, with the source of every rule.
Not for: choosing among measured candidates (`converter.candidates`).
"""
