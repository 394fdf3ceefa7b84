"""A fleet: hosts that share one logical key, of which one signs at a time, whatever breaks.

Safety needs no clock and no belief in who leads: a payload with a position is bound in the database, under the epoch,
before it is signed (manager/policy/watermark.py). Leases only decide who tries.

Reading order: machine, rows, membership, entry, confirmations; then duties, orders, overview. What hosts do after a
loss stands in hsmcore.recovery. docs/FLEET.md and docs/RECOVERY.md say what holds.
"""
