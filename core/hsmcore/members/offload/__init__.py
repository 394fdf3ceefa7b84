"""Members that sign with coroutines or in software, AWS KMS and ephemeral keys: the native engine's table and counters
in front of a back end.

Reading order: engine, runners.
"""
