//! Why a call is refused.
use core::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A preset that is not `k{bits}v{bits}_g{tokens}`.
    Preset,
    /// An array whose length does not fit the others, or a size that the method has no rotation or tile for.
    Shape,
    /// A value that is not finite, or is not once it is binary16.
    NotFinite,
    /// A cut into an encoded tile, or beyond the end.
    Cut,
    /// Bytes that are no saved cache.
    Saved,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Preset => "not a preset",
            Error::Shape => "sizes that do not fit",
            Error::NotFinite => "a value that is not finite in binary16",
            Error::Cut => "a cut into an encoded tile or beyond the end",
            Error::Saved => "not a saved cache",
        })
    }
}

impl core::error::Error for Error {}
