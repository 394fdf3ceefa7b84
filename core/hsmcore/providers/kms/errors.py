"""Errors of AWS KMS: a table from the error's name to a status and its consequence.

Names: KMS API reference, "Sign" and "Common Errors".
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from hsmcore.errors import HsmError, error_of

Then = Literal["retry", "fail", "refused"]


class ErrorRow(NamedTuple):
    """`then`: "retry" within the deadline, "fail" this request, or "refused": these credentials are not good now."""

    status: str
    then: Then
    hint: str | None = None


_CREDENTIALS: Final = (
    "Check where the AWS SDK takes the credentials from (environment, profile, role); they are tried again."
)
_POLICY: Final = "Allow kms:Sign, kms:GetPublicKey and kms:DescribeKey for this key in its policy or the role's."
_STATE: Final = "See the key's state in KMS: enable it or cancel its deletion, or sign with another key."
_CLOCK: Final = "Check the secret access key, and this machine's clock; the credentials are tried again now and then."
_QUOTA: Final = "Lower the rate, or ask AWS for a higher quota of cryptographic operations (ECC)."

_BUSY: Final = ErrorRow("BUSY", "retry", _QUOTA)
_TROUBLE: Final = ErrorRow("BUSY", "retry", "See the AWS Health Dashboard if it lasts.")
_NOT_ALLOWED: Final = ErrorRow("ACCESS_DENIED", "fail", _POLICY)
_REFUSED: Final = ErrorRow("ACCESS_DENIED", "refused", _CREDENTIALS)
BAD_SIGNATURE: Final = ErrorRow("ACCESS_DENIED", "refused", _CLOCK)
_UNKNOWN: Final = ErrorRow("REQUEST_REJECTED", "fail")

_MEANINGS: Final = (
    (_BUSY, "ThrottlingException Throttling TooManyRequestsException RequestLimitExceeded"),
    (ErrorRow("BUSY", "fail", _QUOTA), "LimitExceededException"),
    (_TROUBLE, "KMSInternalException DependencyTimeoutException KeyUnavailableException InternalFailure"),
    (_TROUBLE, "InternalServerError ServiceUnavailable ServiceUnavailableException"),
    (_TROUBLE, "RequestTimeout RequestTimeoutException"),
    (ErrorRow("KEY_UNUSABLE", "fail", _STATE), "DisabledException KMSInvalidStateException"),
    (ErrorRow("KEY_UNUSABLE", "fail", "Use a key made for SIGN_VERIFY."), "InvalidKeyUsageException"),
    (
        ErrorRow("KEY_NOT_FOUND", "fail", "Check keyId, the region and the account of the credentials."),
        "NotFoundException",
    ),
    (
        ErrorRow("KEY_NOT_FOUND", "fail", "Check keyId: a key id, key ARN, alias name or alias ARN."),
        "InvalidArnException",
    ),
    (ErrorRow("REQUEST_REJECTED", "fail", "Choose another name."), "AlreadyExistsException"),
    (_UNKNOWN, "ValidationException UnsupportedOperationException"),
    (_NOT_ALLOWED, "AccessDeniedException AccessDenied NotAuthorized"),
    (_REFUSED, "OptInRequired UnrecognizedClientException InvalidClientTokenId ExpiredTokenException ExpiredToken"),
    (_REFUSED, "MissingAuthenticationTokenException MissingAuthenticationToken"),
    (BAD_SIGNATURE, "InvalidSignatureException IncompleteSignatureException IncompleteSignature RequestExpired"),
    (BAD_SIGNATURE, "RequestTimeTooSkewed"),
)
ROWS: Final[dict[str, ErrorRow]] = {name: row for row, names in _MEANINGS for name in names.split()}


def row_for(name: str, http_status: int) -> ErrorRow:
    """Return the row of an error. For a name that is not in the table the HTTP status decides."""
    found = ROWS.get(name)
    if found is not None:
        return found
    if http_status >= 500:
        return _TROUBLE
    if http_status == 429:
        return _BUSY
    return _NOT_ALLOWED if http_status in (401, 403) else _UNKNOWN


def failure(row: ErrorRow, name: str, operation: str, member: str) -> HsmError:
    """Return the exception. It omits AWS's own text, which may repeat the request."""
    return error_of(row.status, call=f"kms:{operation}", detail=name, member=member, hint=row.hint)
