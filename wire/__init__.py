"""The contract between converter, agent and fleet; it does no input or output."""
