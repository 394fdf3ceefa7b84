"""The checks of `hsmcore doctor`: a probe examines each provider of a configuration, one step at a time.

Reading order: report, subject, doctor; then pkcs11, child, plan, checks, keychecks, public_keys, signing; then
attestation; store, places, fleet and fleet_store. The probes of vendors stand in providers.
"""
