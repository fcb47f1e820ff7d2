//! The laws of `fuzz/` over its corpus and a few thousand mutations of it, always the same ones:
//! what `make fuzz` does for as long as one likes, in seconds and on any machine.

#[path = "../../fuzz/src/laws.rs"]
mod laws;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

/// How many mutations each target sees.
const MUTATIONS: usize = 4_000;
/// How long an input may grow.
const BYTES_MAX: usize = 8 * 1024;

/// Pieces that parsers trip over.
const PIECES: [&[u8]; 24] = [
    b"\0",
    b"\r\n",
    b"\"",
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b": ",
    b"1e999",
    b"-0",
    b"99999999999999999999",
    b"\xff",
    b"\xe2\x80\xae",
    b"null",
    b"127.0.0.1",
    b"[::1]",
    b"%00",
    b"@",
    b"\x01",
];

/// Numbers that look random and are always the same (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % end.max(1) as u64).expect("a number below a usize")
    }

    /// A place in, or right behind, these bytes.
    fn place(&mut self, bytes: &[u8]) -> usize {
        self.below(bytes.len() + 1)
    }

    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let (a, b) = (self.place(bytes), self.place(bytes));
        a.min(b)..a.max(b)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        match self.below(6) {
            0 if !bytes.is_empty() => {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
            1 => {
                let (at, piece) = (self.place(bytes), self.below(PIECES.len()));
                bytes.splice(at..at, PIECES[piece].iter().copied());
            }
            2 => {
                let range = self.range(bytes);
                bytes.drain(range);
            }
            3 => {
                let (range, at) = (self.range(bytes), self.place(bytes));
                let copy = bytes[range].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let (range, at) = (self.range(other), self.place(bytes));
                bytes.splice(at..at, other[range].iter().copied());
            }
            _ => {
                let range = self.range(bytes);
                let piece = self.below(PIECES.len());
                bytes.splice(range, PIECES[piece].iter().copied());
            }
        }
        bytes.truncate(BYTES_MAX);
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&folder).expect("a corpus for each target");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    // A folder has no order of its own.
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a corpus' file"))
        .collect()
}

/// The law over each file as it is, then over mutations.
fn holds(target: &str) {
    let (_, law) = laws::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target of that name");
    let corpus = corpus(target);
    assert!(corpus.len() >= 20, "{} files", corpus.len());
    let judge = |bytes: &[u8]| {
        let judged = catch_unwind(AssertUnwindSafe(|| law(bytes)));
        assert!(judged.is_ok(), "{target}: b\"{}\"", bytes.escape_ascii());
    };
    corpus.iter().for_each(|bytes| judge(bytes));
    let mut dice = Dice(2026);
    for _ in 0..MUTATIONS {
        let (one, other) = (dice.below(corpus.len()), dice.below(corpus.len()));
        let mut bytes = corpus[one].clone();
        for _ in 0..=dice.below(4) {
            dice.mutate(&mut bytes, &corpus[other]);
        }
        judge(&bytes);
    }
}

macro_rules! hold {
    ($($name:ident = $target:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            holds($target);
        })+

        #[test]
        fn every_target_is_among_these() {
            let here = [$($target),+];
            let there = laws::TARGETS.map(|(name, _)| name);
            assert_eq!(here, there);
        }
    };
}

hold!(
    any_bytes_are_an_event_or_refused = "admission",
    any_url_is_refused_or_may_be_dialled = "target_url",
    any_headers_are_refused_or_can_be_sent = "headers",
    any_retry_after_is_a_pause_ahead_or_nothing = "retry_after",
    any_expression_is_refused_or_ends = "filter",
    any_event_is_written_as_what_it_says_it_is = "dialect",
);
