"""What AWS KMS answers when it does not sign: a table from the name of its error to a status and what follows from it.

Names: KMS API reference, "Sign" and "Common Errors".
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from hsmcore.errors import HsmError, error_of

Then = Literal["retry", "fail", "refused"]


class Row(NamedTuple):
    """`then`: "retry" within the deadline, "fail" this request, or "refused": never present these credentials again."""

    status: str
    then: Then
    hint: str | None = None


_CREDENTIALS: Final = (
    "Check where the AWS SDK takes the credentials from (environment, profile, role); they are not tried again."
)
_POLICY: Final = "Allow kms:Sign, kms:GetPublicKey and kms:DescribeKey for this key in its policy or the role's."
_STATE: Final = "See the key's state in KMS: enable it or cancel its deletion, or sign with another key."
_CLOCK: Final = "Check this machine's clock, and the secret access key; the credentials are not tried again."
_QUOTA: Final = "Lower the rate, or ask AWS for a higher quota of cryptographic operations (ECC)."

_BUSY: Final = Row("BUSY", "retry", _QUOTA)
_TROUBLE: Final = Row("BUSY", "retry", "See the AWS Health Dashboard if it lasts.")
_REFUSED: Final = Row("LOGIN_REFUSED", "refused", _CREDENTIALS)

ROWS: Final[dict[str, Row]] = {
    "ThrottlingException": _BUSY,
    "Throttling": _BUSY,
    "TooManyRequestsException": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "LimitExceededException": Row("BUSY", "fail", _QUOTA),
    "KMSInternalException": _TROUBLE,
    "DependencyTimeoutException": _TROUBLE,
    "KeyUnavailableException": _TROUBLE,
    "ServiceUnavailable": _TROUBLE,
    "ServiceUnavailableException": _TROUBLE,
    "InternalFailure": _TROUBLE,
    "InternalServerError": _TROUBLE,
    "RequestTimeout": _TROUBLE,
    "RequestTimeoutException": _TROUBLE,
    "DisabledException": Row("KEY_DEACTIVATED", "fail", _STATE),
    "KMSInvalidStateException": Row("KEY_DEACTIVATED", "fail", _STATE),
    "InvalidKeyUsageException": Row("KEY_UNUSABLE", "fail", "Use a key made for SIGN_VERIFY."),
    "NotFoundException": Row("KEY_NOT_FOUND", "fail", "Check keyId, the region and the account of the credentials."),
    "InvalidArnException": Row("KEY_NOT_FOUND", "fail", "Check keyId: a key id, key ARN, alias name or alias ARN."),
    "AlreadyExistsException": Row("REQUEST_REJECTED", "fail", "Choose another name."),
    "ValidationException": Row("REQUEST_REJECTED", "fail"),
    "UnsupportedOperationException": Row("REQUEST_REJECTED", "fail"),
    "AccessDeniedException": Row("LOGIN_REFUSED", "fail", _POLICY),
    "AccessDenied": Row("LOGIN_REFUSED", "fail", _POLICY),
    "NotAuthorized": Row("LOGIN_REFUSED", "fail", _POLICY),
    "OptInRequired": _REFUSED,
    "UnrecognizedClientException": _REFUSED,
    "InvalidClientTokenId": _REFUSED,
    "MissingAuthenticationTokenException": _REFUSED,
    "MissingAuthenticationToken": _REFUSED,
    "ExpiredTokenException": _REFUSED,
    "ExpiredToken": _REFUSED,
    "InvalidSignatureException": Row("LOGIN_REFUSED", "refused", _CLOCK),
    "IncompleteSignatureException": Row("LOGIN_REFUSED", "refused", _CLOCK),
    "IncompleteSignature": Row("LOGIN_REFUSED", "refused", _CLOCK),
    "RequestExpired": Row("LOGIN_REFUSED", "refused", _CLOCK),
}
_UNKNOWN: Final = Row("REQUEST_REJECTED", "fail")
_UNKNOWN_REFUSAL: Final = Row("LOGIN_REFUSED", "fail", _POLICY)


def row_for(name: str, http_status: int) -> Row:
    """What an error means. For a name that is not in the table the HTTP status decides."""
    found = ROWS.get(name)
    if found is not None:
        return found
    if http_status >= 500:
        return _TROUBLE
    if http_status == 429:
        return _BUSY
    return _UNKNOWN_REFUSAL if http_status in (401, 403) else _UNKNOWN


def failure(row: Row, name: str, operation: str, member: str) -> HsmError:
    """The exception. AWS's own text is left out: it may repeat what was sent."""
    return error_of(row.status, call=f"kms:{operation}", detail=name, member=member, hint=row.hint)
