"""The ground: every room stands on it, and it knows none of them but the errors.

Reading order: log, events, waiting, steady; ownership, files, places; keyring, receipt; listening. The rest is a
function or two each.
"""
