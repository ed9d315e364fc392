//! Positions in the text of a fleet file.

/// The part of a line that a node or a key takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// The length in characters, at least 1; 1 where it ends on another line.
    pub width: u32,
}
