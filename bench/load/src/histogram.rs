//! Latencies by the million in a few kilobytes.

use std::time::Duration;

use serde::Serialize;

/// Buckets for each doubling: a figure is at most 1/16 too low.
const STEPS: u64 = 16;

/// Counts of durations, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    max: u64,
}

/// What is said of a histogram, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    p50: u64,
    p99: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], max: 0 }
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.max = self.max.max(micros);
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += 1;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.max = self.max.max(other.max);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary { p50: self.percentile(50), p99: self.percentile(99), max: self.max }
    }

    fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        reached.map_or(0, least)
    }
}

/// Small values have a bucket each; above, every doubling has [`STEPS`].
fn bucket(micros: u64) -> usize {
    let doublings = (micros / STEPS).checked_ilog2().map_or(0, |log| u64::from(log) + 1);
    let step = micros >> doublings.saturating_sub(1);
    let index = if doublings == 0 { micros } else { doublings * STEPS + (step - STEPS) };
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// The least duration in a bucket.
fn least(bucket: usize) -> u64 {
    let (doublings, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if doublings == 0 { step } else { (STEPS + step) << (doublings - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_within_a_sixteenth_of_all_that_is_in_it() {
        for micros in (0..5000).chain([1 << 20, (1 << 40) + 12345, u64::MAX]) {
            let least = least(bucket(micros));
            assert!(least <= micros && micros - least <= micros / STEPS, "{micros}: {least}");
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let mut histogram = Histogram::new();
        for micros in 1..=10 {
            histogram.add(Duration::from_micros(micros));
        }
        let Summary { p50, p99, max } = histogram.summary();
        assert_eq!((p50, p99, max), (5, 10, 10));
    }
}
