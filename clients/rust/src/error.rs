//! What can go wrong, as the gateway says it or as this end finds it.

use std::fmt;

use crate::tables::Code;

/// Why there is no signature.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    /// What it is; `Code::Other` is one that this release does not know, whose name begins the text.
    pub code: Code,
    /// The same call may succeed a moment later.
    pub retryable: bool,
    /// A signature may exist all the same: have the payload signed again only under the same key.
    pub maybe_signed: bool,
    /// How long to wait before the next attempt, in milliseconds, where it is known; else 0.
    pub retry_after_ms: u32,
    /// Of a gateway's refusal: the request's number, which its audit records have as `via.request`.
    pub request: Option<u64>,
    /// Of `Code::NotHolder`: the fleet's name of the host that holds the epoch, or "".
    pub holder: String,
    /// What happened, and what to do next.
    pub text: String,
}

impl Error {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        let (retryable, holder, text) = (false, String::new(), text.into());
        Self { code, retryable, maybe_signed: false, retry_after_ms: 0, request: None, holder, text }
    }

    pub(crate) fn bad_argument(text: impl Into<String>) -> Self {
        Self::new(Code::BadArgument, text)
    }

    pub(crate) fn closed() -> Self {
        Self::new(Code::Closed, "The client was closed.")
    }

    /// The gateway cannot be reached, or was lost before it answered.
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::new(Code::HostLost, text) }
    }

    /// The same error, of a request that may have been signed.
    pub(crate) fn or_maybe_signed(mut self, maybe: bool) -> Self {
        self.maybe_signed |= maybe;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.text)?;
        f.write_str(if self.maybe_signed { " (it may be signed)" } else { "" })
    }
}

impl std::error::Error for Error {}
