"""Audit logs that devices keep themselves."""
