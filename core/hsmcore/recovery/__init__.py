"""Recovery of a state store after a loss, on a host with or without a fleet.

Reading order: own_store, marks, witness, anchor; then restore, reconcile, state_backup; incident, interchange.
docs/RECOVERY.md says what holds.
"""
