"""hsmcore audit."""
