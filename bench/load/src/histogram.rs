//! Latencies by the million in a few kilobytes.

use std::time::Duration;

use serde::Serialize;

/// Buckets for each doubling: a figure is at most 1/64 too low.
const STEPS: u64 = 64;

/// Counts of durations, in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    max: u64,
}

/// What is said of a histogram, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], max: 0 }
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.max = self.max.max(nanos);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
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
        let [p50, p99, max] = [self.percentile(50), self.percentile(99), self.max].map(micros);
        Summary { p50, p99, max }
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

#[expect(clippy::cast_precision_loss, reason = "a figure of a bench")]
fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Small values have a bucket each; above, every doubling has [`STEPS`].
fn bucket(nanos: u64) -> usize {
    let doublings = (nanos / STEPS).checked_ilog2().map_or(0, |log| u64::from(log) + 1);
    let step = nanos >> doublings.saturating_sub(1);
    let index = if doublings == 0 { nanos } else { doublings * STEPS + (step - STEPS) };
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
    fn a_bucket_begins_within_a_64th_of_all_that_is_in_it() {
        for nanos in (0..5000).chain([1 << 20, (1 << 40) + 12345, u64::MAX]) {
            let least = least(bucket(nanos));
            assert!(least <= nanos && nanos - least <= nanos / STEPS, "{nanos}: {least}");
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_added() {
        let mut histogram = Histogram::new();
        for nanos in 1..=10 {
            histogram.add(Duration::from_nanos(nanos));
        }
        let Summary { p50, p99, max } = histogram.summary();
        assert_eq!((p50, p99, max), (0.005, 0.01, 0.01));
    }
}
