"""AWS KMS over HTTP on the loopback: real keys and signatures, and every way of failing that a test asks for."""

from tests.support.kms.faults import Faults
from tests.support.kms.keys import KeyStore
from tests.support.kms.server import ACCESS_KEY, REGION, SECRET_KEY, KmsServer
from tests.support.kms.settings import config, set_credentials

__all__ = ["ACCESS_KEY", "REGION", "SECRET_KEY", "Faults", "KeyStore", "KmsServer", "config", "set_credentials"]
