"""hsmcore rotate."""
