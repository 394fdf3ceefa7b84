//! Written by scripts/wire_tables.py from the codec in Python: numbers and names of hsmcore-wire/1.

pub const HELLO: u8 = 1;
pub const SIGN: u8 = 2;
pub const SIGN_MANY: u8 = 3;
pub const VERIFY: u8 = 4;
pub const CANCEL: u8 = 5;
pub const ACK: u8 = 6;
pub const PING: u8 = 7;
pub const MANAGE: u8 = 8;
pub const SIGN_BATCHED: u8 = 9;
pub const WELCOME: u8 = 129;
pub const SIGNED: u8 = 130;
pub const SIGNED_MANY: u8 = 131;
pub const VERIFIED: u8 = 132;
pub const PONG: u8 = 133;
pub const ERROR: u8 = 134;
pub const KEYS: u8 = 135;
pub const CREDIT: u8 = 136;
pub const GOAWAY: u8 = 137;
pub const DONE: u8 = 138;
pub const BATCHED: u8 = 139;

pub const VERSION: u16 = 1;
pub const MOST_BYTES: usize = 1048576;
pub const HAS_POSITION: u8 = 1;
pub const AGAIN: u8 = 2;
pub const RETRYABLE: u8 = 1;
pub const MAYBE_SIGNED: u8 = 2;
pub const NONCE_BYTES: usize = 16;
pub const MOST_PING: usize = 64;
pub const NO_RECORD: u64 = 0xffffffffffffffff;

table! {
    /// What a payload is. `Unsaid` says nothing.
    Kind
    Unsaid = "",
    TxLegacy = "tx-legacy",
    TxV0 = "tx-v0",
    TxV1 = "tx-v1",
    OffChain = "off-chain",
    Block = "block",
    StateRoot = "state-root",
    Digest32 = "digest32",
    Raw = "raw",
    Prehashed = "prehashed",
}

table! {
    /// Of a key.
    Algorithm
    Unsaid = "",
    Ed25519 = "ed25519",
    EcdsaP256 = "ecdsa-p256",
    EcdsaSecp256k1 = "ecdsa-secp256k1",
}

table! {
    /// The level of failover that signed. `Unsaid`: unknown.
    Level
    Unsaid = "",
    Primary = "primary",
    Secondary = "secondary",
    Emergency = "emergency",
}

table! {
    /// What can be done with a key.
    Operation
    Unsaid = "",
    Generate = "generate",
    SetCurrent = "set-current",
    Deactivate = "deactivate",
    CacheStats = "cache-stats",
    Export = "export",
    Unfinished = "unfinished",
    Versions = "versions",
}

table! {
    /// What went wrong: a row of hsmcore's statuses.
    Code
    Ok = "OK",
    Busy = "BUSY",
    OperationState = "OPERATION_STATE",
    SessionLost = "SESSION_LOST",
    NotLoggedIn = "NOT_LOGGED_IN",
    KeyHandleStale = "KEY_HANDLE_STALE",
    TokenLost = "TOKEN_LOST",
    ModuleNotInitialized = "MODULE_NOT_INITIALIZED",
    PinIncorrect = "PIN_INCORRECT",
    PinLocked = "PIN_LOCKED",
    LoginRefused = "LOGIN_REFUSED",
    AccessDenied = "ACCESS_DENIED",
    MessageRejected = "MESSAGE_REJECTED",
    MechanismUnsupported = "MECHANISM_UNSUPPORTED",
    KeyUnusable = "KEY_UNUSABLE",
    RequestRejected = "REQUEST_REJECTED",
    ModuleFatal = "MODULE_FATAL",
    CkrUnknown = "CKR_UNKNOWN",
    SignatureMalformed = "SIGNATURE_MALFORMED",
    SignatureInvalid = "SIGNATURE_INVALID",
    ModuleMissing = "MODULE_MISSING",
    ModuleInvalid = "MODULE_INVALID",
    HostMissing = "HOST_MISSING",
    HostMismatch = "HOST_MISMATCH",
    HostLost = "HOST_LOST",
    TokenNotFound = "TOKEN_NOT_FOUND",
    TokenAmbiguous = "TOKEN_AMBIGUOUS",
    KeyNotFound = "KEY_NOT_FOUND",
    KeyAmbiguous = "KEY_AMBIGUOUS",
    KeyMismatch = "KEY_MISMATCH",
    KeyDeactivated = "KEY_DEACTIVATED",
    KeyNotCurrent = "KEY_NOT_CURRENT",
    PublicKeyMissing = "PUBLIC_KEY_MISSING",
    AlgorithmUnsupported = "ALGORITHM_UNSUPPORTED",
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    QueueFull = "QUEUE_FULL",
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    Cancelled = "CANCELLED",
    Closed = "CLOSED",
    Forked = "FORKED",
    BadArgument = "BAD_ARGUMENT",
    PolicyRefused = "POLICY_REFUSED",
    DoubleSign = "DOUBLE_SIGN",
    NotHolder = "NOT_HOLDER",
    FleetBehind = "FLEET_BEHIND",
    OutOfMemory = "OUT_OF_MEMORY",
    System = "SYSTEM",
    Other = "OTHER",
}
