//! Written by scripts/wire_tables.py from the codec in Python: numbers and names of hsmcore-wire/1.

numbers! { u8:
    HELLO = 1, SIGN = 2, SIGN_MANY = 3, VERIFY = 4, CANCEL = 5, ACK = 6, PING = 7, MANAGE = 8, SIGN_BATCHED = 9,
    WELCOME = 129, SIGNED = 130, SIGNED_MANY = 131, VERIFIED = 132, PONG = 133, ERROR = 134, KEYS = 135, CREDIT = 136,
    GOAWAY = 137, DONE = 138, BATCHED = 139, HAS_POSITION = 1, AGAIN = 2, RETRYABLE = 1, MAYBE_SIGNED = 2,
}

numbers! { u16:
    VERSION = 1,
}

numbers! { usize:
    MOST_BYTES = 1048576, NONCE_BYTES = 16, MOST_PING = 64,
}

numbers! { u64:
    NO_RECORD = 18446744073709551615,
}

table! {
    /// What a payload is. `Unsaid` says nothing.
    Kind
    Unsaid = "", TxLegacy = "tx-legacy", TxV0 = "tx-v0", TxV1 = "tx-v1", OffChain = "off-chain", Block = "block",
    StateRoot = "state-root", Digest32 = "digest32", Raw = "raw", Prehashed = "prehashed",
}

table! {
    /// Of a key.
    Algorithm
    Unsaid = "", Ed25519 = "ed25519", EcdsaP256 = "ecdsa-p256", EcdsaSecp256k1 = "ecdsa-secp256k1",
}

table! {
    /// The level of failover that signed. `Unsaid`: unknown.
    Level
    Unsaid = "", Primary = "primary", Secondary = "secondary", Emergency = "emergency",
}

table! {
    /// What can be done with a key.
    Operation
    Unsaid = "", Generate = "generate", SetCurrent = "set-current", Deactivate = "deactivate",
    CacheStats = "cache-stats", Export = "export", Unfinished = "unfinished", Versions = "versions",
}

table! {
    /// What went wrong: a row of hsmcore's statuses.
    Code
    Ok = "OK", Busy = "BUSY", OperationState = "OPERATION_STATE", SessionLost = "SESSION_LOST",
    NotLoggedIn = "NOT_LOGGED_IN", KeyHandleStale = "KEY_HANDLE_STALE", TokenLost = "TOKEN_LOST",
    ModuleNotInitialized = "MODULE_NOT_INITIALIZED", PinIncorrect = "PIN_INCORRECT", PinLocked = "PIN_LOCKED",
    LoginRefused = "LOGIN_REFUSED", AccessDenied = "ACCESS_DENIED", MessageRejected = "MESSAGE_REJECTED",
    MechanismUnsupported = "MECHANISM_UNSUPPORTED", KeyUnusable = "KEY_UNUSABLE", RequestRejected = "REQUEST_REJECTED",
    ModuleFatal = "MODULE_FATAL", CkrUnknown = "CKR_UNKNOWN", SignatureMalformed = "SIGNATURE_MALFORMED",
    SignatureInvalid = "SIGNATURE_INVALID", ModuleMissing = "MODULE_MISSING", ModuleInvalid = "MODULE_INVALID",
    HostMissing = "HOST_MISSING", HostMismatch = "HOST_MISMATCH", HostLost = "HOST_LOST",
    TokenNotFound = "TOKEN_NOT_FOUND", TokenAmbiguous = "TOKEN_AMBIGUOUS", KeyNotFound = "KEY_NOT_FOUND",
    KeyAmbiguous = "KEY_AMBIGUOUS", KeyMismatch = "KEY_MISMATCH", KeyDeactivated = "KEY_DEACTIVATED",
    KeyNotCurrent = "KEY_NOT_CURRENT", PublicKeyMissing = "PUBLIC_KEY_MISSING",
    AlgorithmUnsupported = "ALGORITHM_UNSUPPORTED", MessageTooLarge = "MESSAGE_TOO_LARGE", QueueFull = "QUEUE_FULL",
    DeadlineExceeded = "DEADLINE_EXCEEDED", Cancelled = "CANCELLED", Closed = "CLOSED", Forked = "FORKED",
    BadArgument = "BAD_ARGUMENT", PolicyRefused = "POLICY_REFUSED", DoubleSign = "DOUBLE_SIGN",
    NotHolder = "NOT_HOLDER", FleetBehind = "FLEET_BEHIND", OutOfMemory = "OUT_OF_MEMORY", System = "SYSTEM",
    Other = "OTHER",
}
