"""Keys that end with the process."""
