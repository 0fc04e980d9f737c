"""The main job on one machine, as a newcomer sees it; `make demo` runs it."""
