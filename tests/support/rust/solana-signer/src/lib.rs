//! As much of solana-signer as the client in Rust names, for machines without a registry.

use solana_pubkey::Pubkey;
use solana_signature::Signature;

#[derive(Debug, PartialEq, Eq)]
pub enum SignerError {
    Connection(String),
    Custom(String),
}

impl std::fmt::Display for SignerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for SignerError {}

pub trait Signer {
    fn pubkey(&self) -> Pubkey {
        self.try_pubkey().unwrap_or_default()
    }

    fn try_pubkey(&self) -> Result<Pubkey, SignerError>;

    fn sign_message(&self, message: &[u8]) -> Signature {
        self.try_sign_message(message).unwrap_or_else(|_| Signature::from([0; 64]))
    }

    fn try_sign_message(&self, message: &[u8]) -> Result<Signature, SignerError>;

    fn is_interactive(&self) -> bool;
}
