//! Cuts the bytes of one output of a command into the records of its stream.
//!
//! Joining the records, with a newline behind each that is not partial, gives the program's
//! bytes. Where it cuts depends on the bytes alone, never on how they arrived, save for
//! [`LineSplitter::flush`], which the caller calls when text has waited long enough. It
//! knows no time, and at most one record is held in memory.

use memchr::{memchr, memchr_iter};

/// The longest record, without its newline.
pub const MAX_LINE: usize = 65_536;

/// Each record is handed to `emit` as its bytes, without the newline, and whether it is
/// partial: a piece whose line goes on in the next record, or that has no newline at all.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// What waits for its newline: at most [`MAX_LINE`] bytes between calls.
    pending: Vec<u8>,
}

impl LineSplitter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what the program wrote next. Lines that are whole in `data` are not copied.
    pub fn push(&mut self, mut data: &[u8], emit: &mut impl FnMut(&[u8], bool)) {
        while !self.pending.is_empty() && !data.is_empty() {
            data = self.complete(data, emit);
        }
        let mut start = 0;
        for end in memchr_iter(b'\n', data) {
            let line = cut_long(&data[start..end], emit);
            emit(line, false);
            start = end + 1;
        }
        let rest = cut_long(&data[start..], emit);
        self.pending.extend_from_slice(rest);
    }

    /// Shows what has waited for its newline, as a partial record. Up to three bytes of a
    /// UTF-8 sequence that is not complete stay behind.
    pub fn flush(&mut self, emit: &mut impl FnMut(&[u8], bool)) {
        let end = whole_characters(&self.pending);
        if end > 0 {
            emit(&self.pending[..end], true);
            self.pending.drain(..end);
        }
    }

    /// Whether [`flush`](Self::flush) would show anything.
    pub fn has_waiting(&self) -> bool {
        whole_characters(&self.pending) > 0
    }

    /// Bytes taken and not yet emitted; a reader that starts anew must begin as many bytes back.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// The program has written its last byte.
    pub fn finish(&mut self, emit: &mut impl FnMut(&[u8], bool)) {
        if !self.pending.is_empty() {
            emit(&self.pending, true);
            self.pending.clear();
        }
    }

    /// Goes on with the line that waits, as far as its newline or the longest record.
    fn complete<'a>(&mut self, data: &'a [u8], emit: &mut impl FnMut(&[u8], bool)) -> &'a [u8] {
        // One byte beyond the longest record: only then is it known that the line goes on.
        let room = MAX_LINE + 1 - self.pending.len();
        let (window, rest) = data.split_at(room.min(data.len()));
        if let Some(end) = memchr(b'\n', window) {
            self.pending.extend_from_slice(&window[..end]);
            emit(&self.pending, false);
            self.pending.clear();
            return &data[end + 1..];
        }
        self.pending.extend_from_slice(window);
        let kept = cut_long(&self.pending, emit).len();
        self.pending.drain(..self.pending.len() - kept);
        rest
    }
}

/// Emits the parts of a line that is too long, all but the last, which is returned.
fn cut_long<'a>(mut line: &'a [u8], emit: &mut impl FnMut(&[u8], bool)) -> &'a [u8] {
    while line.len() > MAX_LINE {
        let (part, rest) = line.split_at(whole_characters(&line[..MAX_LINE]));
        emit(part, true);
        line = rest;
    }
    line
}

/// How many bytes there are without a UTF-8 sequence that is cut off at the end. Bytes that
/// can never become UTF-8 count as whole.
fn whole_characters(bytes: &[u8]) -> usize {
    let is_continuation = |b: &u8| (0x80..0xc0).contains(b);
    let tail = bytes.iter().rev().take(3).take_while(|b| is_continuation(b)).count();
    let start = bytes.len().saturating_sub(tail + 1);
    match str::from_utf8(&bytes[start..]) {
        Err(error) if error.error_len().is_none() => start + error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Record = (Vec<u8>, bool);

    /// `chunks` one after the other; a flush after each `Some`.
    fn split<'a>(chunks: impl IntoIterator<Item = (&'a [u8], bool)>) -> Vec<Record> {
        let mut records = Vec::new();
        let mut emit = |bytes: &[u8], partial| records.push((bytes.to_vec(), partial));
        let mut splitter = LineSplitter::new();
        for (chunk, flush) in chunks {
            splitter.push(chunk, &mut emit);
            assert!(splitter.pending_len() <= MAX_LINE);
            if flush {
                splitter.flush(&mut emit);
                assert!(!splitter.has_waiting() && splitter.pending_len() <= 3);
            }
        }
        splitter.finish(&mut emit);
        assert_eq!(splitter.pending_len(), 0);
        records
    }

    fn at_once(data: &[u8]) -> Vec<Record> {
        split([(data, false)])
    }

    fn join(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (record, partial) in records {
            bytes.extend_from_slice(record);
            bytes.extend_from_slice(if *partial { b"" } else { b"\n" });
        }
        bytes
    }

    fn shape(records: &[Record]) -> Vec<(usize, bool)> {
        records.iter().map(|(bytes, partial)| (bytes.len(), *partial)).collect()
    }

    #[test]
    fn lines_come_without_their_newline() {
        let records = at_once(b"one\n\n\rtwo\r\nlast");
        let expected: [(&[u8], bool); 4] = [(b"one", false), (b"", false), (b"\rtwo\r", false), (b"last", true)];
        assert_eq!(records, expected.map(|(bytes, partial)| (bytes.to_vec(), partial)));
        assert_eq!(at_once(b""), []);
    }

    #[test]
    fn a_line_of_the_longest_length_is_whole_and_one_more_byte_splits_it() {
        let line = |len: usize| [vec![b'x'; len], b"\n".to_vec()].concat();
        assert_eq!(shape(&at_once(&line(MAX_LINE))), [(MAX_LINE, false)]);
        assert_eq!(shape(&at_once(&line(MAX_LINE + 1))), [(MAX_LINE, true), (1, false)]);
        assert_eq!(shape(&at_once(&line(2 * MAX_LINE))), [(MAX_LINE, true), (MAX_LINE, false)]);
        assert_eq!(shape(&at_once(&vec![b'x'; MAX_LINE])), [(MAX_LINE, true)]);
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
        for (lead, cut) in [(0, 0), (1, 3), (2, 2), (3, 1)] {
            let text = "x".repeat(lead) + &"😀".repeat(20_000) + "\n";
            let records = at_once(text.as_bytes());
            assert_eq!(records[0].0.len(), MAX_LINE - cut);
            assert!(records.iter().all(|(bytes, _)| str::from_utf8(bytes).is_ok()));
        }
        // What is no UTF-8 is split where the limit is.
        let records = at_once(&vec![0x80; MAX_LINE + 10]);
        assert_eq!(shape(&records), [(MAX_LINE, true), (10, true)]);
    }

    #[test]
    fn a_prompt_is_shown_and_its_newline_still_counts() {
        let records = split([(b"name? ".as_slice(), true), (b"\n", false)]);
        assert_eq!(records, [(b"name? ".to_vec(), true), (b"".to_vec(), false)]);
    }

    #[test]
    fn a_flush_does_not_cut_a_character_but_the_end_does() {
        let smile = "a😀".as_bytes();
        let records = split([(&smile[..3], true), (&smile[3..], true)]);
        assert_eq!(records, [(b"a".to_vec(), true), ("😀".into(), true)]);
        assert_eq!(at_once(&smile[..3]), [(smile[..3].to_vec(), true)]);
        let mut splitter = LineSplitter::new();
        splitter.push(&smile[1..4], &mut |_, _| panic!("nothing is whole yet"));
        assert!(!splitter.has_waiting());
        // A byte that begins nothing is not waited for.
        assert_eq!(split([(b"a\xff".as_slice(), true)]), [(b"a\xff".to_vec(), true)]);
        assert_eq!(split([(b"a\xe0\x80".as_slice(), true)]), [(b"a\xe0\x80".to_vec(), true)]);
    }

    /// Pieces that make newlines, cut characters, junk and lines about the limit likely.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..8),
            4 => "[a\n😀é€]{0,6}".prop_map(String::into_bytes),
            1 => (MAX_LINE - 4..MAX_LINE + 4).prop_map(|len| vec![b'x'; len]),
            1 => (0..40_000_usize).prop_map(|len| "😀".repeat(len).into_bytes()),
            1 => (0..70_000_usize).prop_map(|len| vec![0xe2; len]),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    fn chunked(data: &[u8], mut cuts: Vec<(usize, bool)>) -> Vec<(&[u8], bool)> {
        for (at, _) in &mut cuts {
            *at %= data.len() + 1;
        }
        cuts.sort_unstable();
        let mut start = 0;
        cuts.push((data.len(), false));
        let cut = |(end, flush): (usize, bool)| (&data[std::mem::replace(&mut start, end)..end], flush);
        cuts.into_iter().map(cut).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_records_join_to_the_programs_bytes(
            data in bytes(),
            cuts in prop::collection::vec((any::<usize>(), any::<bool>()), 0..12),
        ) {
            let records = split(chunked(&data, cuts));
            prop_assert!(join(&records) == data);
            prop_assert!(records.iter().all(|(bytes, _)| bytes.len() <= MAX_LINE && !bytes.contains(&b'\n')));
        }

        #[test]
        fn how_the_bytes_arrive_makes_no_difference(
            data in bytes(),
            cuts in prop::collection::vec(any::<usize>().prop_map(|at| (at, false)), 0..12),
        ) {
            prop_assert!(split(chunked(&data, cuts)) == at_once(&data));
        }

        #[test]
        fn text_stays_text(text in "[a\n😀é€]{0,40}", cuts in prop::collection::vec(any::<(usize, bool)>(), 0..12)) {
            let long = text.repeat(1_500);
            for data in [&text, &long] {
                let records = split(chunked(data.as_bytes(), cuts.clone()));
                prop_assert!(records.iter().all(|(bytes, _)| str::from_utf8(bytes).is_ok()));
            }
        }
    }
}
