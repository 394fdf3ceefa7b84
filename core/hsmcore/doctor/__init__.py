"""The capability probe: what `hsmcore doctor` finds out about each provider of a configuration, one step at a time.

Reading order: report, registry, doctor; then pkcs11 with child, checks, keychecks and signing; ephemeral, kms.
"""

from hsmcore.doctor.doctor import Levels, diagnose, levels_of
from hsmcore.doctor.registry import PROBES, probe
from hsmcore.doctor.report import DoctorReport, Identity, ProviderReport, Step
from hsmcore.doctor.subject import Options, Probe

__all__ = [
    "PROBES",
    "DoctorReport",
    "Identity",
    "Levels",
    "Options",
    "Probe",
    "ProviderReport",
    "Step",
    "diagnose",
    "levels_of",
    "probe",
]
