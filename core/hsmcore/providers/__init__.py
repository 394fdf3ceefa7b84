"""The vendors, a folder each: settings, member, probe, device log, attestation. A descriptor names what is in it, as a
third party's does (docs/ARCHITECTURE.md); the signing core imports none of it by name."""
