"""The campaign that tries to break a fleet: real databases, real processes, and what goes wrong between them."""
