"""The other side of the pipe: programs that sign for a slice of time when told to, each in a process of its own."""
