"""Deterministic simulation: the whole Python half in one thread, under a simulated clock. README.md says how."""
