"""Answers of real aarch64 processes under qemu-user, never their latency."""
