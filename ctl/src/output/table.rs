//! The boxed table of `-w table`: headings centred and in capitals, cells right-aligned.

/// Draws headings and rows; blanks around the text of a cell are dropped. Every row must have as many cells as there are headings.
pub fn draw(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings: Vec<String> = headings.iter().map(|h| h.to_uppercase()).collect();
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        assert!(
            row.len() == headings.len(),
            "a table row has {} cells for {} headings",
            row.len(),
            headings.len()
        );
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.trim().chars().count());
        }
    }
    let rule = |left: &str, middle: &str, right: &str| {
        let dashes: Vec<String> = widths.iter().map(|w| "─".repeat(w + 2)).collect();
        format!("{left}{}{right}\n", dashes.join(middle))
    };
    let line = |cells: &[String], centred: bool| {
        let cells: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| {
                let cell = cell.trim();
                let spare = width - cell.chars().count();
                let left = if centred { spare / 2 } else { spare };
                format!(" {}{cell}{} ", " ".repeat(left), " ".repeat(spare - left))
            })
            .collect();
        format!("│{}│\n", cells.join("│"))
    };
    let mut out = rule("┌", "┬", "┐");
    out.push_str(&line(&headings, true));
    out.push_str(&rule("├", "┼", "┤"));
    for row in rows {
        out.push_str(&line(row, false));
    }
    out.push_str(&rule("└", "┴", "┘"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_are_centred_and_cells_lean_right() {
        let drawn = draw(
            &["id", "name"],
            &[vec!["1234567".into(), "n".into()], vec!["1".into(), "longer name".into()]],
        );
        let expected = "\
┌─────────┬─────────────┐
│   ID    │    NAME     │
├─────────┼─────────────┤
│ 1234567 │           n │
│       1 │ longer name │
└─────────┴─────────────┘
";
        assert_eq!(drawn, expected);
    }
}
