//! The text format of Prometheus.

use std::fmt::{Display, Write};

/// Writes one family's two comment lines.
pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one sample without labels.
pub(super) fn sample(out: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(out, "{name} {value}");
}

/// Writes a family of one sample.
pub(super) fn single(out: &mut String, name: &str, kind: &str, help: &str, value: impl Display) {
    family(out, name, kind, help);
    sample(out, name, value);
}

/// A label value with what the format escapes.
pub(super) fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes the lines of one histogram. `counts` has one more element than `bounds`, for what lies above.
pub(super) fn histogram(
    out: &mut String,
    name: &str,
    labels: &str,
    bounds: &[&str],
    counts: &[u64],
    sum_seconds: f64,
) {
    assert!(counts.len() == bounds.len() + 1, "{name} has a count for each bound and one above");
    let mut total = 0;
    for (bound, count) in bounds.iter().chain(&["+Inf"]).zip(counts) {
        total += count;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
    }
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum_seconds}");
    let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn buckets_accumulate() {
        let mut out = String::new();
        super::histogram(&mut out, "h", "a=\"b\"", &["1", "2"], &[3, 0, 4], 1.5);
        assert_eq!(
            out,
            "h_bucket{a=\"b\",le=\"1\"} 3\nh_bucket{a=\"b\",le=\"2\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 7\n\
             h_sum{a=\"b\"} 1.5\nh_count{a=\"b\"} 7\n"
        );
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(super::escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
