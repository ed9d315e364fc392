//! Buffers for what is to be written, kept by the thread between uses.
//!
//! A connection has one only while something waits to be written: an idle one holds none, and a new one would be grown by
//! half a dozen steps for each message.

use std::cell::RefCell;

/// The most buffers kept, and the largest: together no more than 1 MiB a thread.
const MOST: usize = 32;
const LARGEST: usize = 32 * 1024;
/// What a head and a small body take.
const USUAL: usize = 2 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room.
pub fn take() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(USUAL))
}

/// Empties a buffer and takes it back, but for a large one: that stays, for whoever has much to write has more.
pub fn give(buffer: &mut Vec<u8>) {
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
        let place = buffer.as_ptr();
        give(&mut buffer);

        let again = take();

        assert_eq!((again.as_ptr(), again.len(), buffer.capacity()), (place, 0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers: Vec<Vec<u8>> = (0..2 * MOST).map(|_| take()).collect();
        buffers.into_iter().for_each(|mut buffer| give(&mut buffer));
        let mut large = Vec::with_capacity(LARGEST + 1);
        give(&mut large);

        let kept = SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).collect::<Vec<_>>());

        assert_eq!(kept.len(), MOST);
        assert!(large.capacity() > LARGEST);
        assert!(kept.iter().all(|capacity| *capacity <= LARGEST), "{kept:?}");
    }
}
