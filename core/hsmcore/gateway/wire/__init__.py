"""The gateway's wire. docs/WIRE.md is its specification.

Reading order: frames, fields, messages, batched.
"""
