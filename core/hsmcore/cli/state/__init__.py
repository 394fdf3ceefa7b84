"""hsmcore state."""
