"""SoftHSM: a token in files."""
