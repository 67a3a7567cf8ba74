//! Latencies in buckets: exact below 256 ns, within 0.8 % above, constant memory, mergeable.

/// Each doubling of the value has so many buckets; 128 keep the error of a percentile below one in 128.
const BUCKETS_PER_DOUBLING: usize = 128;
/// Bits of a value that stay below the first coarser bucket.
const EXACT_BITS: u32 = 8;
/// Enough for every u64 of nanoseconds.
const BUCKETS: usize = (64 - EXACT_BITS as usize) * BUCKETS_PER_DOUBLING + 2 * BUCKETS_PER_DOUBLING;

/// Counts of nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], total: 0, sum: 0, max: 0 }
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = (64 - nanos.leading_zeros()).saturating_sub(EXACT_BITS);
    shift as usize * BUCKETS_PER_DOUBLING + (nanos >> shift) as usize
}

/// The largest value that falls into a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < 2 * BUCKETS_PER_DOUBLING {
        return bucket as u64;
    }
    let shift = bucket / BUCKETS_PER_DOUBLING - 1;
    let mantissa = (bucket - shift * BUCKETS_PER_DOUBLING) as u128;
    u64::try_from(((mantissa + 1) << shift) - 1).unwrap_or(u64::MAX)
}

impl Histogram {
    pub fn record(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.sum += u128::from(nanos);
        self.max = self.max.max(nanos);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// Zero when nothing was recorded.
    pub fn mean(&self) -> u64 {
        if self.total == 0 { 0 } else { (self.sum / u128::from(self.total)) as u64 }
    }

    /// How far recordings lie from their mean, as the root of the mean square; zero when nothing was recorded.
    pub fn deviation(&self) -> u64 {
        let mean = self.mean() as f64;
        let squares = |(bucket, count): (usize, &u64)| {
            let distance = upper(bucket).min(self.max) as f64 - mean;
            distance * distance * *count as f64
        };
        let sum: f64 = self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(squares).sum();
        if self.total == 0 { 0 } else { (sum / self.total as f64).sqrt() as u64 }
    }

    /// The smallest value that `per_mille` of a thousand recordings do not exceed, never above the maximum.
    pub fn at(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0u128;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return upper(bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_do_not_overlap() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
        for b in 1..BUCKETS {
            assert_eq!((bucket(upper(b)), bucket(upper(b - 1) + 1)), (b, b));
        }
    }

    #[test]
    fn percentiles_agree_with_a_sorted_list() {
        let (mut histogram, mut sorted) = (Histogram::default(), Vec::new());
        let mut x = 88172645463325252u64;
        for _ in 0..20_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let value = x % 1_000_000;
            histogram.record(value);
            sorted.push(value);
        }
        sorted.sort_unstable();
        for per_mille in [1, 500, 900, 990, 999, 1000] {
            let exact = sorted[(sorted.len() * per_mille).div_ceil(1000) - 1];
            let got = histogram.at(per_mille as u64);
            assert!(got >= exact && got - exact <= exact / 100 + 1, "p{per_mille}: {got} against {exact}");
        }
        assert_eq!(histogram.at(1000), histogram.max());
    }

    #[test]
    fn merging_is_the_same_as_recording_together() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for value in [1, 500, 70_000] {
            a.record(value);
            both.record(value);
        }
        b.record(9);
        both.record(9);
        a.merge(&b);
        assert_eq!(
            (a.count(), a.max(), a.mean(), a.at(500)),
            (both.count(), both.max(), both.mean(), both.at(500))
        );
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        let empty = Histogram::default();
        assert_eq!((empty.count(), empty.mean(), empty.at(500), empty.max()), (0, 0, 0, 0));
    }
}
