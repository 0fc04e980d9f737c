"""Registry of devices and releases, staged rollouts, rollback."""
