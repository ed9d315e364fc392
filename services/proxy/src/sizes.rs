//! Assertions on the sizes of large types and futures. A request that needs another kilobyte costs it for each connection and
//! stream, and nothing else shows it.

/// The size of the future that an async function returns; the names stand for its arguments.
macro_rules! future_size {
    ($function:expr; $($argument:ident),*) => {{
        fn size<$($argument,)* F>(_: impl FnOnce($($argument),*) -> F) -> usize {
            size_of::<F>()
        }
        size($function)
    }};
}
pub(crate) use future_size;

/// Asserts that `size` is within a tenth of `expected`, in bytes. A change that is worth its memory changes `expected`.
#[track_caller]
pub fn assert_size(what: &str, size: usize, expected: usize) {
    let band = expected * 9 / 10..=expected * 11 / 10;
    assert!(band.contains(&size), "{what} takes {size} bytes, where {band:?} were expected");
}
