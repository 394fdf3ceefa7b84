"""A fleet: hosts that share one logical key, of which one signs at a time, whatever breaks.

Safety needs no clock and no belief in who leads: a payload with a position is bound in the database, under the epoch,
before it is signed (policy/watermark.py). Leases only decide who tries.

Reading order: machine, rows, membership, entry, confirmations; then incident, witness, duties, orders; interchange and
overview. Of a host without a fleet: alone, recovery. docs/FLEET.md and docs/RECOVERY.md say what holds.
"""
