"""What measures hsmcore and what breaks it: the benchmark suite, the load generator and the demonstration."""
