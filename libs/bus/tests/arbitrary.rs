//! Bytes that nobody of ours wrote: never a panic, and memory only in proportion to what came in.
//!
//! One test, because it counts what the whole process allocates.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(unsafe_code, reason = "an allocator that counts must implement an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tidegate_bus::claims::IdentityClaim;
use tidegate_bus::codec::{SCHEMA_VERSION, Wire, decode, encode};
use tidegate_bus::table::{Delta, Snapshot};
use tidegate_model::{
    observation::{Observation, ObservationCause, Target},
    overrides::Override,
    report::{Applied, Load, Suspicion},
    routes::{RouteCause, RouteEntry, RouteKey},
};

/// The largest single allocation since it was last set to 0.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// serde prepares room for at most 1 MiB of a list's items, whatever its length says; bincode's limit for up to 4 KiB
/// of input is 64 KiB.
const MOST: usize = (1 << 20) + (64 << 10);

fn try_to_read<T: Wire>(bytes: &[u8]) -> usize {
    LARGEST.store(0, Relaxed);
    let read = decode::<T>(bytes);
    let largest = LARGEST.load(Relaxed);
    // What can be read is whole: it is written and read again as the same bytes.
    if let Ok(value) = read {
        let written = encode(&value);
        assert_eq!(encode(&decode::<T>(&written).unwrap()), written);
    }
    largest
}

#[test]
fn arbitrary_bytes_never_panic_and_never_claim_more_than_their_share() {
    let readers: [fn(&[u8]) -> usize; 15] = [
        try_to_read::<Target>,
        try_to_read::<Observation>,
        try_to_read::<ObservationCause>,
        try_to_read::<RouteKey>,
        try_to_read::<RouteEntry>,
        try_to_read::<RouteCause>,
        try_to_read::<Applied>,
        try_to_read::<Load>,
        try_to_read::<Suspicion>,
        try_to_read::<IdentityClaim>,
        try_to_read::<Override>,
        try_to_read::<Delta>,
        try_to_read::<Snapshot>,
        try_to_read::<Vec<String>>,
        try_to_read::<String>,
    ];
    // Small bytes make valid discriminants and lengths; 250 to 253 begin the wide numbers of bincode.
    let byte = prop_oneof![4 => 0u8..6, 2 => 250u8..=255, 3 => b'a'..b'e', 1 => any::<u8>()];
    let mut runner = TestRunner::new(Config { cases: 1_500, ..Config::default() });
    runner
        .run(&vec(byte, 0..200), |bincode| {
            let mut body = SCHEMA_VERSION.to_be_bytes().to_vec();
            body.extend(bincode);
            for (index, read) in readers.iter().enumerate() {
                let largest = read(&body);
                prop_assert!(largest <= MOST, "reader {index} allocated {largest} bytes at once");
                read(&body[1..]);
            }
            Ok(())
        })
        .unwrap();
    // A text that says it is 1 GiB long.
    let lie = [&SCHEMA_VERSION.to_be_bytes()[..], &[252, 0, 0, 0, 64], b"abc"].concat();
    assert!(decode::<String>(&lie).is_err());
    assert!(try_to_read::<String>(&lie) <= MOST);
}
