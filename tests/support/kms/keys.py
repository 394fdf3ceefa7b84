"""Keys as AWS KMS keeps them, and what each operation of its API does. Signs with PyNaCl and `cryptography`."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from nacl.signing import SigningKey

ACCOUNT = "111122223333"
MAX_RAW_MESSAGE = 4096  # KMS API reference, Sign: MessageType RAW
_ED25519_SPKI = bytes.fromhex("302a300506032b6570032100")  # RFC 8410, section 4
CURVES = {"ECC_NIST_P256": ec.SECP256R1, "ECC_SECG_P256K1": ec.SECP256K1}
ALGORITHM_OF_SPEC = {
    "ECC_NIST_EDWARDS25519": "ED25519_SHA_512",
    "ECC_NIST_P256": "ECDSA_SHA_256",
    "ECC_SECG_P256K1": "ECDSA_SHA_256",
}


class KmsFailure(Exception):
    """An answer with an error: its type, HTTP status and text."""

    def __init__(self, kind: str, text: str = "", status: int = 400) -> None:
        super().__init__(kind, text, status)
        self.kind, self.text, self.status = kind, text or f"made up by a test: {kind}", status


@dataclass
class Key:
    """One KMS key."""

    arn: str
    spec: str
    usage: str = "SIGN_VERIFY"
    state: str = "Enabled"
    tags: list[dict[str, str]] = field(default_factory=list)
    private: Any = None
    description: str = ""

    def __post_init__(self) -> None:
        self.replace()

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]

    def replace(self) -> None:
        """Put another key pair behind the same id: what must never happen, and what pinning notices."""
        if self.spec == "ECC_NIST_EDWARDS25519":
            self.private = SigningKey.generate()
        else:
            self.private = ec.generate_private_key(CURVES.get(self.spec, ec.SECP384R1)())

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        if self.spec == "ECC_NIST_EDWARDS25519":
            return _ED25519_SPKI + bytes(self.private.verify_key)
        public: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return public

    @property
    def raw_public(self) -> bytes:
        """32 bytes, or 0x04 || X || Y."""
        return self.spki[-32:] if self.spec == "ECC_NIST_EDWARDS25519" else self.spki[-65:]

    def sign(self, message: bytes, kind: str) -> bytes:
        """As KMS does: 64 bytes for Ed25519, else an ECDSA-Sig-Value in DER. `kind` is a MessageType."""
        if self.spec == "ECC_NIST_EDWARDS25519":
            return bytes(self.private.sign(message).signature)
        digest = hashes.SHA256() if kind == "RAW" else Prehashed(hashes.SHA256())
        signature: bytes = self.private.sign(message, ec.ECDSA(digest))
        return signature

    def metadata(self) -> dict[str, Any]:
        return {
            "AWSAccountId": ACCOUNT,
            "KeyId": self.id,
            "Arn": self.arn,
            "Enabled": self.state == "Enabled",
            "KeyUsage": self.usage,
            "KeyState": self.state,
            "KeySpec": self.spec,
            "CustomerMasterKeySpec": self.spec,
            "Description": self.description,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "MultiRegion": False,
            "SigningAlgorithms": [ALGORITHM_OF_SPEC.get(self.spec, "ECDSA_SHA_384")],
            "CreationDate": 1.7e9,
        }


class KeyStore:
    """The keys of one account and region. `operations` maps an operation's name to what answers it."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.keys: dict[str, Key] = {}
        self.signed: list[tuple[str, bytes]] = []
        """The id of the key and the message of each signature, whether its answer arrived or not."""
        self.aliases: dict[str, str] = {}
        self.operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "CreateKey": self._create_key,
            "CreateAlias": self._create_alias,
            "DescribeKey": lambda request: {"KeyMetadata": self.find(request["KeyId"]).metadata()},
            "DisableKey": self._disable_key,
            "GetPublicKey": self._get_public_key,
            "ListAliases": self._list_aliases,
            "ListKeys": self._list_keys,
            "ScheduleKeyDeletion": self._schedule_deletion,
            "Sign": self._sign,
            "UpdateAlias": self._update_alias,
        }

    def make(self, spec: str = "ECC_NIST_EDWARDS25519", alias: str | None = None, **details: Any) -> Key:
        """A new key."""
        key = Key(
            f"arn:aws:kms:{self.region}:{ACCOUNT}:key/{uuid.UUID(bytes=secrets.token_bytes(16))}", spec, **details
        )
        self.keys[key.id] = key
        if alias is not None:
            self.aliases[f"alias/{alias}"] = key.id
        return key

    def find(self, name: str) -> Key:
        """By id, ARN or alias."""
        found = name.partition(":key/")[2] or name
        if "alias/" in name:
            found = self.aliases.get("alias/" + name.partition("alias/")[2], "")
        if found not in self.keys:
            raise KmsFailure("NotFoundException", f"Key '{name}' does not exist")
        return self.keys[found]

    def _usable(self, request: dict[str, Any]) -> Key:
        key = self.find(request["KeyId"])
        if key.state == "Disabled":
            raise KmsFailure("DisabledException", f"{key.arn} is disabled.")
        if key.state != "Enabled":
            raise KmsFailure("KMSInvalidStateException", f"{key.arn} is {key.state}.")
        return key

    def _create_key(self, request: dict[str, Any]) -> dict[str, Any]:
        key = self.make(request["KeySpec"], usage=request["KeyUsage"], tags=request.get("Tags", []))
        key.description = request.get("Description", "")
        return {"KeyMetadata": key.metadata()}

    def _create_alias(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["AliasName"] in self.aliases:
            raise KmsFailure("AlreadyExistsException")
        self.aliases[request["AliasName"]] = self.find(request["TargetKeyId"]).id
        return {}

    def _update_alias(self, request: dict[str, Any]) -> dict[str, Any]:
        name, key = request["AliasName"], self._not_deleted(request["TargetKeyId"])
        if name not in self.aliases:
            raise KmsFailure("NotFoundException", f"Alias {name} is not found.")
        if key.usage != self.keys[self.aliases[name]].usage:
            raise KmsFailure("ValidationException", "the key usage differs")
        self.aliases[name] = key.id
        return {}

    def _not_deleted(self, name: str) -> Key:
        key = self.find(name)
        if key.state == "PendingDeletion":
            raise KmsFailure("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        return key

    def _disable_key(self, request: dict[str, Any]) -> dict[str, Any]:
        self._not_deleted(request["KeyId"]).state = "Disabled"
        return {}

    def _get_public_key(self, request: dict[str, Any]) -> dict[str, Any]:
        key = self._usable(request)
        algorithms = key.metadata()["SigningAlgorithms"]
        public = base64.b64encode(key.spki).decode()
        return {
            "KeyId": key.arn,
            "PublicKey": public,
            "KeySpec": key.spec,
            "KeyUsage": key.usage,
            "SigningAlgorithms": algorithms,
        }

    def _list_keys(self, request: dict[str, Any]) -> dict[str, Any]:
        # Two to a page, so that a client that reads only the first one is found out.
        ids = list(self.keys)
        begin = int(request.get("Marker", "0"))
        page = [{"KeyId": name, "KeyArn": self.keys[name].arn} for name in ids[begin : begin + 2]]
        more = begin + 2 < len(ids)
        return {"Keys": page, "Truncated": more, **({"NextMarker": str(begin + 2)} if more else {})}

    def _list_aliases(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {
            "Aliases": [{"AliasName": name, "TargetKeyId": target} for name, target in self.aliases.items()],
            "Truncated": False,
        }

    def _schedule_deletion(self, request: dict[str, Any]) -> dict[str, Any]:
        key = self._not_deleted(request["KeyId"])
        key.state = "PendingDeletion"
        return {"KeyId": key.arn, "DeletionDate": 1.8e9, "KeyState": key.state}

    def _sign(self, request: dict[str, Any]) -> dict[str, Any]:
        key = self._usable(request)
        message = base64.b64decode(request["Message"], validate=True)
        wanted = ALGORITHM_OF_SPEC.get(key.spec)
        kind = request.get("MessageType", "RAW")
        sizes = {"RAW": range(1, MAX_RAW_MESSAGE + 1), "DIGEST": (32,)}
        if len(message) not in sizes[kind] or (kind == "DIGEST" and key.spec == "ECC_NIST_EDWARDS25519"):
            raise KmsFailure("ValidationException", "1 validation error detected: Message")
        if request["SigningAlgorithm"] != wanted:
            raise KmsFailure("InvalidKeyUsageException", f"{key.arn} key usage does not support it")
        self.signed.append((key.id, message))
        signature = base64.b64encode(key.sign(message, kind)).decode()
        return {"KeyId": key.arn, "Signature": signature, "SigningAlgorithm": wanted}
