//! Signatures from `hsmcore gateway`, over hsmcore-wire/1, with nothing but std.
//!
//! [`Client`] is blocking and pipelined: [`Client::sign`] waits, [`Client::submit`] returns a [`Pending`], of which many
//! may be open. Each connection has two threads; a client may be used by any number.
//!
//! Reading order: wire (frames), stream (connections), route (addresses), job and link (requests), client.
#![forbid(unsafe_code)]

macro_rules! numbers {
    ($form:ident: $($name:ident = $value:literal,)*) => { $(pub const $name: $form = $value;)* };
}

/// An enum with the numbers and names of one of the protocol's tables.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident $($variant:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $(#[doc = concat!("`", $text, "`")] $variant,)* }

        impl $name {
            /// All of them; each stands at the place of its number.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// As hsmcore writes it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

mod client;
mod error;
mod job;
mod link;
mod route;
#[cfg(feature = "solana")]
pub mod solana;
mod stream;
mod tables;
#[doc(hidden)]
pub mod wire;

pub use client::{Client, Options, Pending, State, Verifier};
pub use error::Error;
pub use stream::{Dialler, Stream};
pub use tables::{Algorithm, Code, Kind, Level, Operation};
pub use wire::{Key, Signature};
