//! The nearest valid name to a misspelt one.

/// Edit distance where inserting, dropping and replacing a character and swapping two neighbours each cost one.
pub fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows = vec![vec![0usize; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

/// Longer texts are not compared: no name is that long, and the table of distances grows with the square.
const COMPARED_CHARS_MAX: usize = 100;

/// The closest of `names`, if it is close enough to be meant: within a third of its length, at least 2 edits.
pub fn nearest<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    if given.chars().count() > COMPARED_CHARS_MAX || given.is_empty() {
        return None;
    }
    names
        .map(|name| (distance(&given, &name.to_lowercase()), name))
        .filter(|(edits, name)| *edits <= 2.max(name.chars().count() / 3))
        .min_by_key(|(edits, name)| (*edits, name.len()))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("nmae", "name"), 1);
        let names = ["name", "data-dir", "listen-peer-urls", "listen-client-urls"];
        assert_eq!(nearest("nmae", names.into_iter()), Some("name"));
        assert_eq!(nearest("listen-client-url", names.into_iter()), Some("listen-client-urls"));
        assert_eq!(nearest("DATA_DIR", names.into_iter()), Some("data-dir"));
        assert_eq!(nearest("zzzzzzzzzzzz", names.into_iter()), None);
        assert_eq!(nearest(&"x".repeat(5000), names.into_iter()), None);
    }
}
