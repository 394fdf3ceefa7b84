"""hsmcore keys."""
