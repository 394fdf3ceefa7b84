"""Backups of keys.

Reading order: envelope (the file, signed by the key in it), drill (the proof that a
backup can be restored), inspect (the operator's commands).
"""
