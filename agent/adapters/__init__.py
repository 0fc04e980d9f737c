"""What touches the machine: each module fulfils one port of `agent.ports` and decides nothing."""
