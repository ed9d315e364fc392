//! Write buffers, pooled per thread.
//!
//! A connection has one only while data is queued, so that an idle one holds no memory and messages do not grow a new
//! buffer step by step.

use std::cell::RefCell;

/// The maximum number and size of pooled buffers: at most 1 MiB per thread.
const MOST: usize = 32;
const LARGEST: usize = 32 * 1024;
/// The initial size: enough for a head and a small body.
const USUAL: usize = 2 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Takes an empty buffer.
pub fn take() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(USUAL))
}

/// Clears a buffer and returns it to the pool. A large one stays where it is, since its owner probably needs it again.
pub fn put(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > LARGEST {
        return;
    }
    let buffer = std::mem::take(buffer);
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MOST {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_empty_then() {
        let mut buffer = take();
        buffer.extend_from_slice(b"an answer");
        let index = buffer.as_ptr();
        put(&mut buffer);

        let again = take();

        assert_eq!((again.as_ptr(), again.len(), buffer.capacity()), (index, 0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers: Vec<Vec<u8>> = (0..2 * MOST).map(|_| take()).collect();
        buffers.into_iter().for_each(|mut buffer| put(&mut buffer));
        let mut large = Vec::with_capacity(LARGEST + 1);
        put(&mut large);

        let kept = SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).collect::<Vec<_>>());

        assert_eq!(kept.len(), MOST);
        assert!(large.capacity() > LARGEST);
        assert!(kept.iter().all(|capacity| *capacity <= LARGEST), "{kept:?}");
    }
}
