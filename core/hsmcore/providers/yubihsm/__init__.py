"""YubiHSM 2: settings, the device's own log, attestation."""
