"""Figures as JSON: `make bench` or `python -m bench`; ratios are measured side by side in one run."""
