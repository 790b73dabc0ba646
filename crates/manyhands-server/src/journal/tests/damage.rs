//! Files that are not what was written, byte by byte, and directories that something is missing from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manyhands::wire::pickle::Codec;

use super::disk::Disk;
use super::replica::{Replica, body};
use crate::journal::Wreck;
use crate::journal::frame::{self, FILE_HEADER_LEN, Frame, Seal, seal};
use crate::journal::{
    Body, Durability, Entry, JournalError, Lsn, Opened, Options, Record, ResultTask, TaskOptions,
    check, dump, open,
};

const OPTIONS: Options = Options {
    segment_bytes: 1024,
    frame_bytes_max: 512,
    spares_max: 1,
    checkpoint_bytes_min: 0,
    checkpoint_chunk_bytes: 1 << 20,
    sparse_percent: 25,
    sync_interval: std::time::Duration::ZERO,
};
const IDENTITY: u64 = 0x6d61_6e79_6861_6e64;

type Files = BTreeMap<String, Vec<u8>>;

/// A journal with every kind of record, a checkpoint, a segment that only holds a body, and three
/// more; and what it comes to with and without its last frame.
fn sample(is_closed: bool) -> (Files, Vec<Replica>) {
    let disk = Disk::default();
    let visit = &mut |_: Entry<'_>| panic!("nothing is there yet");
    let opened = open(Arc::new(disk.clone()), OPTIONS, IDENTITY, visit).unwrap();
    let Opened { journal, mut writer, .. } = opened;
    let mut states = vec![Replica::default()];
    let mut append = |records: &[Record<'_>]| {
        let mut locations = Vec::new();
        journal.append(records, Durability::Disk, &mut locations);
        let mut state = states.last().unwrap().clone();
        let mut locations = locations.into_iter();
        for record in records {
            state.apply(record, record.body().and_then(|_| locations.next()));
        }
        states.push(state.clone());
        while writer.step().unwrap() {}
        state
    };
    let (name, settings, cause) = ("tâches", "order=lifo", "worker died");
    let options = TaskOptions {
        priority: Some(&[128, 1]),
        not_before: Some(1_700_000_000_000),
        expires: Some(1_800_000_000_000),
        key: Some(b"key"),
        attempt: 3,
        note: b"note",
    };
    append(&[
        Record::Queue { queue: 1, name, settings, next_task: 0, unfinished: 0 },
        Record::Put { queue: 1, task: 0, options, body: body(b"the first") },
        Record::Put { queue: 1, task: 1, options: TaskOptions::default(), body: body(&[1; 250]) },
    ]);
    let bytes = Body { codec: Codec::Bytes, ..body(&[2; 300]) };
    append(&[Record::Put { queue: 1, task: 2, options, body: bytes }]);
    append(&[Record::Put { queue: 1, task: 3, options, body: body(&[3; 300]) }]);
    let settled = Record::Settled { queue: 1, task: 0, attempt: 3, lease: 1 << 32 };
    let ack = Record::Ack { queue: 1, task: 0, attempt: 3, result: None };
    let snapshot = append(&[ack, settled.clone(), Record::Done { queue: 1, tasks: 1 }]);
    let mark = journal.mark();
    let seen = Record::Seen { queue: 1, key: b"key", until: 1_800_000_000_000 };
    let records = snapshot.checkpoint().chain([seen, settled]);
    journal.checkpoint(mark, records).unwrap();
    let result = Some(ResultTask { queue: 2, task: 0, options, body: body(&[4; 200]) });
    append(&[Record::Ack { queue: 1, task: 1, attempt: 0, result }]);
    let not_before = Some(1_700_000_000_000);
    append(&[
        Record::Returned { queue: 1, task: 2, attempt: 4, not_before, cause },
        Record::Dead { queue: 1, task: 3, to_queue: 3, to_task: 0, cause },
    ]);
    append(&[
        Record::Moved { queue: 3, task: 0, body: body(&[3; 300]) },
        Record::Redriven { queue: 3, task: 0, to_queue: 1, to_task: 5 },
    ]);
    append(&[
        Record::Put { queue: 4, task: 0, options, body: body(b"to be purged") },
        Record::Put { queue: 4, task: 1, options, body: body(b"") },
        Record::Purged { queue: 4, before: 2, kept: vec![1].into() },
        Record::Removed { queue: 9 },
    ]);
    let json = Body { codec: Codec::Json, ..body(&[5; 100]) };
    append(&[Record::Put { queue: 1, task: 6, options, body: json }]);
    if is_closed {
        writer.close().unwrap();
    }
    (disk.files(), states)
}

/// A closed journal with plain tasks only, most of them in rows of a checkpoint; and what it comes to.
fn backlog() -> (Files, Vec<Replica>) {
    let disk = Disk::default();
    let visit = &mut |_: Entry<'_>| panic!("nothing is there yet");
    let opened = open(Arc::new(disk.clone()), OPTIONS, IDENTITY, visit).unwrap();
    let Opened { journal, mut writer, .. } = opened;
    let mut state = Replica::default();
    let mut append = |record: Record<'_>| {
        let mut locations = Vec::new();
        journal.append(std::slice::from_ref(&record), Durability::Disk, &mut locations);
        state.apply(&record, locations.pop());
        while writer.step().unwrap() {}
        state.clone()
    };
    let options = TaskOptions::default();
    for low in 0..20u8 {
        let task = low.into();
        append(Record::Put { queue: 1, task, options, body: body(&[low; 30]) });
        if task % 4 == 0 {
            let bytes = [low; 9];
            let body = Body { codec: Codec::Json, ..body(&bytes) };
            append(Record::Put { queue: 2, task: task / 4, options, body });
        }
    }
    let snapshot = append(Record::Ack { queue: 1, task: 7, attempt: 1, result: None });
    journal.checkpoint(journal.mark(), snapshot.checkpoint()).unwrap();
    let last = append(Record::Put { queue: 1, task: 20, options, body: body(b"after it") });
    writer.close().unwrap();
    (disk.files(), vec![last.clone(), last])
}

/// What a start finds, with every body read.
fn start(files: &Files) -> Result<Replica, JournalError> {
    let disk = Disk::of(files);
    let mut found = Replica::default();
    let opened = open(Arc::new(disk), OPTIONS, IDENTITY, &mut |entry| found.replay(&entry))?;
    for kept in found.tasks.values() {
        opened.journal.bodies().read(kept.location)?;
    }
    found.read(&opened.journal.bodies());
    Ok(found)
}

fn file_of(error: &JournalError) -> &str {
    match error {
        JournalError::Damaged { file, .. } | JournalError::Missing(file) => file,
        error => panic!("{error}"),
    }
}

/// Damages each file as `damage` does at each of its bytes. A start must refuse it by name or find
/// everything; `last` is the frame that nothing intact comes after.
fn damage_everywhere(files: &Files, states: &[Replica], damage: impl Fn(&mut Vec<u8>, usize)) {
    let all = states.last().unwrap().facts();
    let but_last = states[states.len() - 2].facts();
    let [mut refused, mut harmless, mut cut] = [0; 3];
    let last_segment = files.keys().rfind(|name| name.ends_with(".seg")).unwrap();
    for name in files.keys() {
        for at in 0..files[name].len() {
            let mut files = files.clone();
            damage(files.get_mut(name).unwrap(), at);
            match start(&files) {
                Err(error) => {
                    assert_eq!(file_of(&error), name, "at byte {at}: {error}");
                    refused += 1;
                }
                Ok(found) if found.facts() == all => harmless += 1,
                Ok(found) => {
                    assert_eq!((name, found.facts()), (last_segment, but_last.clone()), "{at}");
                    cut += 1;
                }
            }
        }
    }
    eprintln!("{refused} refused, {harmless} harmless, {cut} cut off the end");
    assert!(refused > 1000 && harmless > 1000);
}

/// What can be salvaged: frames with their records, and how many bodies are damaged.
fn salvaged(files: &Files) -> (Vec<(Lsn, String)>, usize, Wreck) {
    let mut found = Vec::new();
    let mut bodies = Vec::new();
    let mut wreck = Wreck::of(Arc::new(Disk::of(files))).unwrap();
    let visited = wreck.visit(&mut |entry| {
        let location = match entry.record {
            Record::Live { location, .. } => Some(location),
            _ => entry.location,
        };
        bodies.extend(location.map(|location| (found.len(), location)));
        found.push((entry.lsn, format!("{:?}", entry.record)));
    });
    visited.unwrap();
    let mut open = None;
    bodies.retain(|(_, location)| wreck.body(*location, &mut open).is_err());
    for (at, _) in bodies.iter().rev() {
        found.remove(*at);
    }
    (found, bodies.len(), wreck)
}

#[test]
fn of_a_directory_with_a_damaged_byte_all_else_is_salvaged_and_nothing_is_made_up() {
    let (files, _) = sample(true);
    let (whole, _, wreck) = salvaged(&files);
    assert!(wreck.damages.is_empty() && wreck.names.is_empty());
    let mut without_checkpoint = files.clone();
    without_checkpoint.retain(|name, _| !name.ends_with(".ckpt"));
    let (told, ..) = salvaged(&without_checkpoint);
    let last_segment = files.keys().rfind(|name| name.ends_with(".seg")).unwrap();
    let mut bodies_only = 0;
    for name in files.keys() {
        for at in 0..files[name].len() {
            let mut files = files.clone();
            flip(files.get_mut(name).unwrap(), at);
            let (found, bodies, wreck) = salvaged(&files);
            let is_told = |it: &&(Lsn, String)| whole.contains(it) || told.contains(it);
            assert!(found.iter().all(|it| is_told(&it)), "{name} {at}: {found:?}");
            let lost = whole.iter().filter(|it| !found.contains(it));
            let frames: BTreeSet<Lsn> = lost.map(|(lsn, _)| *lsn).collect();
            assert!(frames.len() <= 1, "{name} {at}: {frames:?} are lost");
            let is_silent = wreck.damages.is_empty() && bodies == 0;
            // The end of the last segment may be a write that was cut off.
            let is_whole = frames.is_empty() || found == told;
            assert!(!is_silent || is_whole || name == last_segment, "{name} {at}");
            bodies_only += usize::from(bodies == 1 && wreck.damages.is_empty());
        }
    }
    assert!(bodies_only > 500, "{bodies_only}");
}

fn flip(file: &mut [u8], at: usize) {
    file[at] ^= 1 << (at % 8);
}

fn frames(segment: &[u8], seed: u32) -> impl Iterator<Item = Frame<'_>> {
    let parse = move |at| frame::parse(segment, at, seed).filter(Frame::is_whole);
    std::iter::successors(parse(FILE_HEADER_LEN), move |frame| parse(frame.end))
}

#[test]
fn a_flipped_bit_anywhere_in_a_closed_journal_is_refused_by_name_or_harmless() {
    let (files, states) = sample(true);
    let states = [states.as_slice(), &[states.last().unwrap().clone()]].concat();
    damage_everywhere(&files, &states, |file, at| flip(file, at));
}

#[test]
fn a_flipped_bit_anywhere_in_a_backlog_is_refused_by_name_or_harmless() {
    let (files, states) = backlog();
    damage_everywhere(&files, &states, |file, at| flip(file, at));
}

#[test]
fn a_flipped_bit_in_a_journal_that_was_not_closed_can_at_worst_look_like_a_torn_frame() {
    let (files, states) = sample(false);
    damage_everywhere(&files, &states, |file, at| flip(file, at));
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused_by_name_or_harmless() {
    let (files, states) = sample(true);
    let all = states.last().unwrap().facts();
    for name in files.keys() {
        for at in 0..files[name].len() {
            let mut files = files.clone();
            files.get_mut(name).unwrap().truncate(at);
            match start(&files) {
                Err(error) => assert_eq!(file_of(&error), name, "cut at {at}: {error}"),
                Ok(found) => assert_eq!(found.facts(), all, "{name} cut at {at}"),
            }
        }
    }
}

#[test]
fn a_frame_torn_at_any_byte_is_cut_off_and_the_journal_goes_on() {
    let (files, states) = sample(false);
    let name = files.keys().rfind(|name| name.ends_with(".seg")).unwrap();
    let seed = frame::seed(IDENTITY, name[..10].parse().unwrap());
    let intact = frames(&files[name], seed).last().unwrap();
    let begin = intact.end - frame::FRAME_HEADER_LEN - frame::aligned(intact.records.len());
    for at in begin..intact.end - 8 {
        let mut files = files.clone();
        files.get_mut(name).unwrap()[at..].fill(0);
        let disk = Disk::of(&files);
        for starts in 0..3 {
            let mut found = Replica::default();
            let visit = &mut |entry: Entry<'_>| found.replay(&entry);
            let opened = open(Arc::new(disk.clone()), OPTIONS, IDENTITY, visit).unwrap();
            found.read(&opened.journal.bodies());
            assert_eq!(opened.recovered.lsn, Lsn(intact.lsn.0 - 1 + starts), "torn at {at}");
            assert_eq!(found.facts(), states[states.len() - 2].facts());
        }
    }
}

#[test]
fn a_frame_behind_one_that_was_lost_never_comes_back() {
    let disk = Disk::default();
    let start = |disk: &Disk| {
        let mut records = Vec::new();
        let visit = &mut |entry: Entry<'_>| records.push(format!("{:?}", entry.record));
        (open(Arc::new(disk.clone()), OPTIONS, IDENTITY, visit).unwrap(), records)
    };
    let (Opened { journal, mut writer, .. }, _) = start(&disk);
    for queue in [7, 8] {
        journal.append(&[Record::Removed { queue }], Durability::Os, &mut Vec::new());
        assert!(writer.step().unwrap());
    }
    // The power goes; the first of the two is lost, and the next epoch's frame is as long as it was.
    let mut files = disk.files();
    let segment = files.get_mut("0000000001.seg").unwrap();
    let frames = frames(segment, frame::seed(IDENTITY, 1));
    let ends: Vec<_> = frames.map(|frame| frame.end).collect();
    segment[ends[0]..ends[1]].fill(0);
    let disk = Disk::of(&files);
    for epoch in 2..5 {
        let (opened, records) = start(&disk);
        assert_eq!((opened.recovered.epoch, records.len() as u64), (epoch, epoch - 1));
        assert!(!records.iter().any(|record| record.contains("Removed")), "{records:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let (files, _) = sample(true);
    let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).collect();
    for name in &segments {
        let mut files = files.clone();
        files.remove(*name);
        assert_eq!(file_of(&start(&files).unwrap_err()), *name);
    }
}

#[test]
fn a_directory_of_which_only_the_head_is_left_is_not_taken_for_an_empty_one() {
    let (mut files, _) = sample(true);
    files.retain(|name, _| name == "head");
    assert_eq!(file_of(&start(&files).unwrap_err()), "0000000003.seg");
}

#[test]
fn without_an_intact_head_a_start_goes_on_as_before() {
    let (files, states) = sample(true);
    let all = states.last().unwrap().facts();
    for head in [None, Some(vec![]), Some(vec![0; 24])] {
        let mut files = files.clone();
        files.remove("head");
        files.extend(head.map(|bytes| ("head".to_owned(), bytes)));
        assert_eq!(start(&files).unwrap().facts(), all);
    }
}

#[test]
fn a_segment_of_another_journal_or_place_is_named() {
    let (files, _) = sample(true);
    let names: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
    let mut swapped = files.clone();
    swapped.insert(names[1].clone(), files[&names[2]].clone());
    assert_eq!(file_of(&start(&swapped).unwrap_err()), names[1]);
}

#[test]
fn a_newer_format_is_refused_before_anything_is_changed() {
    let (mut files, _) = sample(true);
    let segment = files.iter_mut().rfind(|(name, _)| name.ends_with(".seg")).unwrap().1;
    segment[8] += 1;
    let crc = crc32c::crc32c(&segment[..FILE_HEADER_LEN - 4]);
    segment[FILE_HEADER_LEN - 4..FILE_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    let disk = Disk::of(&files);
    let opened = open(Arc::new(disk.clone()), OPTIONS, IDENTITY, &mut |_| {});
    assert!(matches!(opened, Err(JournalError::Newer { found: 2, known: 1, .. })), "{opened:?}");
    assert_eq!(disk.files(), files);
}

#[test]
fn a_record_of_a_newer_version_is_refused_by_name() {
    let (mut files, _) = sample(true);
    let (name, segment) = files.iter_mut().rfind(|(name, _)| name.ends_with(".seg")).unwrap();
    let seed = frame::seed(IDENTITY, name[..10].parse().unwrap());
    let last = frames(segment, seed).last().unwrap();
    let (previous, epoch, end) = (last.chain, last.epoch, last.end);
    let (lsn, synced) = (last.lsn.next(), last.lsn);
    let mut newer = vec![0; frame::FRAME_HEADER_LEN];
    newer.push(99);
    seal(&mut newer, seed, Seal { previous, epoch, lsn, synced });
    segment[end..end + newer.len()].copy_from_slice(&newer);
    let offset = end as u64;
    let opened = open(Arc::new(Disk::of(&files)), OPTIONS, IDENTITY, &mut |_| {});
    assert!(
        matches!(opened, Err(JournalError::UnknownRecord { kind: 99, offset: at, .. }) if at == offset),
        "{opened:?}"
    );
}

#[test]
fn an_older_checkpoint_does_where_its_segments_are_still_there() {
    let (files, states) = sample(true);
    let mut with_older = files.clone();
    let checkpoint = files.keys().find(|name| name.ends_with(".ckpt")).unwrap();
    // Nothing was freed by it here, so all the log is there without it.
    flip(with_older.get_mut(checkpoint).unwrap(), 70);
    assert!(files.contains_key("0000000001.seg"), "the sample keeps its first segment");
    assert_eq!(start(&with_older).unwrap().facts(), states.last().unwrap().facts());
}

fn fixtures(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal").join(version)
}

fn stored(directory: &Path) -> Files {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(path).unwrap())
    };
    entries.map(file).collect()
}

#[test]
fn directories_of_format_1_0_still_open() {
    for name in ["closed", "killed"] {
        let (v1, v1_1) = (stored(&fixtures("v1").join(name)), stored(&fixtures("v1.1").join(name)));
        assert_eq!(start(&v1).unwrap().facts(), start(&v1_1).unwrap().facts());
    }
}

#[test]
fn directories_of_format_1_1_still_open() {
    for (name, tasks) in [("closed", 5), ("killed", 5), ("backlog", 25)] {
        let stored = stored(&fixtures("v1.1").join(name));
        assert_eq!(start(&stored).unwrap().tasks.len(), tasks, "{name}");
    }
}

#[test]
fn directories_of_format_1_2_still_open() {
    for (name, tasks) in [("closed", 5), ("killed", 5), ("backlog", 25)] {
        let stored = stored(&fixtures("v1.2").join(name));
        assert_eq!(start(&stored).unwrap().tasks.len(), tasks, "{name}");
    }
}

#[test]
fn directories_of_format_1_3_still_open() {
    for (name, tasks) in [("closed", 5), ("killed", 5), ("backlog", 25)] {
        let stored = stored(&fixtures("v1.3").join(name));
        assert_eq!(start(&stored).unwrap().tasks.len(), tasks, "{name}");
    }
}

/// `MANYHANDS_FIXTURES=write` writes them anew, which is only right before a release of the format.
#[test]
fn directories_of_format_1_4_still_open_and_are_still_what_we_write() {
    let (closed, killed) = (sample(true), sample(false));
    for (name, (files, states), is_closed, bodies) in [
        ("closed", closed, true, 3),
        ("killed", killed, false, 3),
        ("backlog", backlog(), true, 24),
    ] {
        let directory = fixtures("v1.4").join(name);
        if std::env::var_os("MANYHANDS_FIXTURES").is_some() {
            std::fs::create_dir_all(&directory).unwrap();
            for (name, bytes) in &files {
                std::fs::write(directory.join(name), bytes).unwrap();
            }
        }
        let (mut stored, mut files) = (stored(&directory), files);
        assert_eq!(start(&stored).unwrap().facts(), states.last().unwrap().facts());
        // How much space a checkpoint has is not a matter of the format.
        for files in [&mut stored, &mut files] {
            files.retain(|name, _| name != "reserve");
        }
        assert!(stored == files, "the format has changed");
        let report = check(&directory).unwrap();
        assert_eq!((report.is_closed, report.epoch, report.bodies), (is_closed, 1, bodies));
        let mut records = 0;
        dump(&directory, &mut |_| records += 1).unwrap();
        assert_eq!(records, report.records);
    }
}
