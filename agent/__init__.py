"""The daemon on the device; it imports neither numpy nor a runtime."""
