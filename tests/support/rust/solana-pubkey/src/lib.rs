//! As much of solana-pubkey as the client in Rust names, for machines without a registry.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pubkey([u8; 32]);

impl From<[u8; 32]> for Pubkey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Pubkey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
