"""The store of a fleet, in PostgreSQL.

Reading order: url, link, text, schema, database; then roles, ask, probe.
"""
