"""What the gateway's clients cost each other, measured."""
