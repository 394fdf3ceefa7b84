"""The checks of `hsmcore doctor`: a probe examines each provider of a configuration, one step at a time.

Reading order: report, subject, doctor; then pkcs11, child, plan, checks, keychecks, signing; then attestation;
store, places, fleet and fleet_store. The probes of vendors stand in providers.
"""

from hsmcore.doctor.doctor import diagnose, probe
from hsmcore.doctor.report import DoctorReport, Identity, ProviderReport, Step
from hsmcore.doctor.subject import Options, Probe

__all__ = [
    "DoctorReport",
    "Identity",
    "Options",
    "Probe",
    "ProviderReport",
    "Step",
    "diagnose",
    "probe",
]
