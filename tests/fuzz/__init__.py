"""Fuzzing of everything that reads bytes from outside: `make fuzz`, and a bounded run among the tests."""
