"""The engine of members that sign with coroutines or in software, in Python: AWS KMS and ephemeral keys.

Reading order: requests, engine, runners; then keytable, single_flight, counters, recorded.
"""
