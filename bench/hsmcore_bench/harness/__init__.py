"""What the suite, the load generator and the demonstration share."""
