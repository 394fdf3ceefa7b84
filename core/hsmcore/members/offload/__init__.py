"""The engine, in Python, of members that sign with coroutines or in software: AWS KMS and ephemeral keys.

Reading order: requests, engine, runners; then keytable, single_flight, counters, recorded.
"""
