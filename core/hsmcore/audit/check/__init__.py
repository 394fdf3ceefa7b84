"""Checking a log that is at rest: what is wrong with it, and proofs about it.

Reading order: verify (the whole log), tilecheck, findings, diagnose; then trust, proofs, prove, overview, mend.
"""
