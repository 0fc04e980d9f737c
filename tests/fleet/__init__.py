"""Tests of fleet/: the registry and its rollouts."""
