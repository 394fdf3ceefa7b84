"""Verifies a log from a copy of its files, and makes and checks proofs about it.

Read verify (the whole log), tilecheck, findings, diagnose; then trust, proofs, prove, overview, mend, adopt.
"""
