"""What `shallop-agent doctor` makes of what was found; the looking itself is in `agent.adapters.probe_*`."""
