"""The gateway: one or several key managers for programs in other processes and other languages.

Reading order: docs/WIRE.md, frames, wire.
"""
