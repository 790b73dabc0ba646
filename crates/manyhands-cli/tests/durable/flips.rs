//! One bit of a directory is another than was written: the program refuses it and names the place, or
//! nothing is lost.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;

/// Length of the header of a file and of a frame, in bytes; `docs/journal-format.md`.
pub(super) const FILE_HEADER: usize = 64;
pub(super) const FRAME_HEADER: usize = 48;
/// Length of a large item's text, in bytes: more than a queue keeps in memory are there.
pub(super) const LARGE: usize = 100_000;
/// Small tasks at the end of the log.
const SMALL_TASKS: u64 = 40;

/// What a server that was killed has left: a checkpoint, segments that only hold bodies, and a log.
pub(super) struct Killed {
    pub(super) home: Home,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The first large task that is there; the others up to 90 are too.
    pub(super) first: u8,
    /// How many small ones are.
    pub(super) small: u64,
}

pub(super) fn large(number: u8) -> String {
    char::from(b' ' + number % 90).to_string().repeat(LARGE)
}

fn number_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where the frames of a segment are.
pub(super) fn frames(segment: &[u8]) -> Vec<Range<usize>> {
    let (mut frames, mut at, mut last) = (Vec::new(), FILE_HEADER, number_at(segment, 24));
    while segment.get(at..at + 4) == Some(b"MHFR") && number_at(segment, at + 32) == last + 1 {
        let end = at + FRAME_HEADER + number_at(segment, at + 16);
        frames.push(at..end);
        (at, last) = (end.next_multiple_of(8), last + 1);
    }
    frames
}

impl Killed {
    fn new() -> Self {
        Self::after(&["tasks", "small"], |_| ()).0
    }

    /// The same where something happened before, on queues that are there too.
    pub(super) fn after<T>(
        queues: &[&'static str],
        happen: impl FnOnce(&Server) -> T,
    ) -> (Self, T) {
        let home = Home::new(queues);
        let server = home.serve();
        let happened = happen(&server);
        let connected = client(&server);
        let tasks = connected.queue::<String>("tasks").unwrap();
        (0..60).for_each(|number| tasks.put(&large(number)).unwrap());
        (0..30).for_each(|number| assert_eq!(tasks.get().unwrap(), large(number)));
        (60..90).for_each(|number| tasks.put(&large(number)).unwrap());
        // The first one has what happened before.
        let second = home.data().join("0000000002.seg");
        let is_let_go = support::wait_until(|| (!second.exists()).then_some(()));
        assert!(is_let_go.is_some(), "a checkpoint lets go of what was taken");
        let small = connected.queue::<u64>("small").unwrap();
        // All of them in one segment.
        let mut count = 0;
        let in_last = || frames(&fs::read(home.files("seg").pop().unwrap()).unwrap()).len() as u64;
        while count < SMALL_TASKS || in_last() < SMALL_TASKS {
            small.put(&count).unwrap();
            count += 1;
        }
        drop(server);
        let mut killed = Self { home, files: BTreeMap::new(), first: 30, small: count };
        killed.files = killed.read();
        (killed, happened)
    }

    pub(super) fn read(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.home.data()).unwrap().map(|entry| entry.unwrap());
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect()
    }

    fn names(&self, kind: &str) -> Vec<&str> {
        let names = self.files.keys().map(String::as_str);
        names.filter(|name| name.ends_with(kind)).collect()
    }

    pub(super) fn checkpoint(&self) -> &str {
        self.names(".ckpt").pop().unwrap()
    }

    /// How long that is, without what its file held before.
    pub(super) fn checkpoint_len(&self) -> usize {
        let size = self.files[self.checkpoint()][44..52].try_into().unwrap();
        usize::try_from(u64::from_le_bytes(size)).unwrap()
    }

    /// Segments that the log is read from, and those before, which only hold bodies.
    pub(super) fn segments(&self) -> (Vec<&str>, Vec<&str>) {
        let first = number_at(&self.files[self.checkpoint()], 12);
        let all = self.names(".seg").into_iter();
        all.partition(|name| name.trim_end_matches(".seg").parse::<usize>().unwrap() >= first)
    }

    /// The last large task whose body only a checkpoint refers to, its segment, and where in that its
    /// text begins.
    pub(super) fn behind_checkpoint(&self) -> (u8, &str, usize) {
        let (_, segments) = self.segments();
        let place = |number: u8| {
            let body = large(number);
            let begins = |window: &[u8]| window == &body.as_bytes()[..1000];
            segments.iter().find_map(|name| {
                Some((number, *name, self.files[*name].windows(1000).position(begins)?))
            })
        };
        (self.first + 1..90).rev().find_map(place).expect("a checkpoint was written")
    }

    /// The directory as it was left, but for one bit.
    pub(super) fn flip(&self, name: &str, at: usize) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        files.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
        for old in self.read().keys().filter(|old| !files.contains_key(*old)) {
            fs::remove_file(self.home.data().join(old)).unwrap();
        }
        for (name, bytes) in &files {
            fs::write(self.home.data().join(name), bytes).unwrap();
        }
        files
    }

    /// The server and `journal check` refuse the directory, name the place and change nothing.
    fn is_refused(&self, name: &str, at: usize, place: usize) {
        let files = self.flip(name, at);
        let place = format!("the journal is damaged: {name} at byte {place}: ");
        let refusal = self.home.refusal();
        assert!(refusal.contains(&place), "a flip at {at} of {name}: {refusal}");
        let (is_intact, text) = self.home.journal("check", &[]);
        assert!(!is_intact && text.contains(&place), "a flip at {at} of {name}: {text}");
        assert!(self.read() == files, "a flip at {at} of {name}: the directory was changed");
    }
}

#[test]
fn a_bit_that_flipped_is_refused_by_its_place_wherever_a_start_reads() {
    let killed = Killed::new();
    let (log, bodies) = killed.segments();
    let last = *log.last().unwrap();
    let frames = frames(&killed.files[last]);
    let frame = frames[frames.len() / 2].clone();
    // The magic, each checksum, the length, the numbers, the first and the last of its records.
    let inside = [0, 4, 8, 12, 16, 24, 32, 40, FRAME_HEADER, frame.len() - 1];
    for at in inside.map(|at| frame.start + at) {
        killed.is_refused(last, at, frame.start);
    }
    for at in [0, 12, 16, 24, 44, 60] {
        killed.is_refused(last, at, 0);
    }
    assert!(!bodies.is_empty() && killed.files.keys().all(|name| name != "0000000001.seg"));
    let checkpoint = killed.checkpoint();
    let len = killed.checkpoint_len();
    for at in [0, 12, 24, 60, FILE_HEADER, FILE_HEADER + 4, len / 2, len - 9, len - 1] {
        killed.is_refused(checkpoint, at, 0);
    }
}

#[test]
fn a_bit_that_flipped_in_a_body_is_found_when_its_turn_comes() {
    let killed = Killed::new();
    let (damaged, name, at) = killed.behind_checkpoint();
    let before = usize::from(damaged - killed.first);
    let files = killed.flip(name, at + LARGE / 2);
    let place = format!("the journal is damaged: {name} at byte ");
    let (is_intact, text) = killed.home.journal("check", &[]);
    assert!(!is_intact && text.contains(&place), "{text}");
    assert!(killed.read() == files, "check changes nothing");
    let server = killed.home.serve();
    let connected = client(&server);
    let tasks = connected.queue::<String>("tasks").unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| tasks.get().ok()).collect();
    assert!(
        taken
            .iter()
            .enumerate()
            .all(|(number, item)| { *item == large(killed.first + u8::try_from(number).unwrap()) })
    );
    assert_eq!(taken.len(), before, "those before it are intact");
    let said = failure(server);
    let line = said.lines().find(|line| line.starts_with("manyhands: ")).unwrap();
    assert!(line.contains(&place), "{said}");
    let offset = line.split("at byte ").nth(1).and_then(|it| it.split(':').next()).unwrap();
    let offset: usize = offset.parse().unwrap();
    assert!(offset < at && at - offset < 32, "the body at {at} is called that at {offset}");
    assert!(killed.read()[name] == files[name], "what is damaged is left as it was");
}

#[test]
fn a_bit_that_flipped_anywhere_is_told_by_its_file_or_loses_nothing() {
    let killed = Killed::new();
    let (log, bodies) = killed.segments();
    let last = *log.last().unwrap();
    // Damage there looks like a write that the kill has cut off.
    let cut_off = frames(&killed.files[last]).pop().unwrap();
    let mut flips = vec![(bodies[0], 16)];
    let (names, mut random) = (killed.files.keys().map(String::as_str), 1_u64);
    for name in names.filter(|name| *name != "lock").step_by(5) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        flips.push((name, usize::try_from(random >> 33).unwrap() % killed.files[name].len()));
    }
    let is_sure = |(name, at): &(&str, usize)| *name != last || !cut_off.contains(at);
    for (name, at) in flips.into_iter().filter(is_sure) {
        let files = killed.flip(name, at);
        let (is_intact, text) = killed.home.journal("check", &[]);
        let (server, names_it) = match killed.home.try_serve() {
            Err(refusal) => {
                assert!(refusal.contains(name) && text.contains(name), "{name} {at}: {refusal}");
                assert!(!is_intact && killed.read() == files, "{name} {at}");
                continue;
            }
            Ok(server) => (server, text.contains(name)),
        };
        let connected = client(&server);
        let tasks = connected.queue::<String>("tasks").unwrap();
        let taken = std::iter::from_fn(|| tasks.try_get().ok());
        let count = taken.zip(killed.first..).inspect(|(item, number)| {
            assert!(*item == large(*number), "{name} {at}: {number} is another");
        });
        if count.count() < usize::from(90 - killed.first) {
            assert!(!is_intact && names_it, "{name} {at}: {text}");
            assert!(failure(server).contains(name), "{name} {at}");
            continue;
        }
        let small = connected.queue::<u64>("small").unwrap();
        assert!((0..killed.small).all(|number| small.try_get().is_ok_and(|it| it == number)));
    }
}
