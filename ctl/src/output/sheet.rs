//! One list of things in every format of `-o`: a table for people, records for programs. A verb describes its columns and fills rows; how
//! they are shown is decided here, so that all verbs look alike.

use super::paint::{Paint, Tone};
use super::text::{cut, one_line, width};
use super::value::Value;
use crate::units::format_size;

/// Between two columns.
const GAP: &str = "   ";
/// Stands in a table where there is nothing.
const NOTHING: &str = "-";

/// A column: `key` names it in records, `heading` in tables.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub key: &'static str,
    pub heading: &'static str,
    /// Only in `wide`, and in every record.
    pub wide: bool,
    /// Numbers stand at the right.
    pub right: bool,
    /// So many columns of a terminal at most, unless `wide`; 0: as many as it takes.
    pub cut: usize,
}

impl Column {
    pub const fn new(key: &'static str, heading: &'static str) -> Column {
        Column { key, heading, wide: false, right: false, cut: 0 }
    }

    pub const fn number(key: &'static str, heading: &'static str) -> Column {
        Column { right: true, ..Column::new(key, heading) }
    }

    /// The same, only in `wide`.
    pub const fn only_wide(self) -> Column {
        Column { wide: true, ..self }
    }

    /// The same, cut after so many columns of a terminal unless `wide`.
    pub const fn cut(self, columns: usize) -> Column {
        Column { cut: columns, ..self }
    }
}

/// One value: what programs get, what people see, and what it means.
#[derive(Clone, Debug)]
pub struct Cell {
    pub value: Value,
    pub shown: String,
    pub tone: Tone,
    /// A name for the record when it is not the column's (`key_base64` beside `key`).
    pub key: Option<&'static str>,
}

impl Cell {
    /// Something whose text is made by the caller and safe for a terminal.
    pub fn shown(value: impl Into<Value>, shown: impl Into<String>) -> Cell {
        Cell { value: value.into(), shown: shown.into(), tone: Tone::Plain, key: None }
    }

    pub fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell::shown(text.as_str(), one_line(&text))
    }

    /// Texts in one cell: a list for programs, with commas for people.
    pub fn texts(texts: &[String]) -> Cell {
        Cell::shown(texts.to_vec(), one_line(&texts.join(",")))
    }

    pub fn number(number: impl Into<Value>) -> Cell {
        let value = number.into();
        let shown = value.to_json_line();
        Cell::shown(value, shown)
    }

    /// An id of a member or cluster, in hexadecimal everywhere: JSON readers lose the last digits of such numbers.
    pub fn id(id: u64) -> Cell {
        Cell::text(format!("{id:x}"))
    }

    /// Bytes: a number for programs, `20 kB` for people.
    pub fn size(bytes: u64) -> Cell {
        Cell::shown(bytes, format_size(bytes))
    }

    /// `yes` or `no`.
    pub fn truth(truth: bool) -> Cell {
        Cell::shown(truth, if truth { "yes" } else { "no" })
    }

    /// Nothing to say.
    pub fn nothing() -> Cell {
        Cell::shown(Value::Null, "").tone(Tone::Faint)
    }

    pub fn tone(self, tone: Tone) -> Cell {
        Cell { tone, ..self }
    }
}

/// The formats of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Table,
    Wide,
    Json,
    JsonLines,
    Yaml,
    Raw,
}

impl Shape {
    pub const ALL: [(&'static str, Shape); 6] = [
        ("table", Shape::Table),
        ("wide", Shape::Wide),
        ("json", Shape::Json),
        ("jsonl", Shape::JsonLines),
        ("yaml", Shape::Yaml),
        ("raw", Shape::Raw),
    ];

    pub fn name(self) -> &'static str {
        Shape::ALL.iter().find(|(_, shape)| *shape == self).map_or("", |(name, _)| name)
    }
}

/// A list with a name. Every row has one cell for each column; the first column names the thing (it is what `raw` prints).
#[derive(Clone, Debug)]
pub struct Sheet {
    name: &'static str,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    /// What is true of the whole: beside the list in json and yaml, and not in tables and lines.
    whole: Vec<(String, Value)>,
    /// Said instead of an empty table.
    empty: &'static str,
}

impl Sheet {
    /// `name`: of the list in json and yaml.
    pub fn new(name: &'static str, columns: &[Column]) -> Sheet {
        Sheet { name, columns: columns.to_vec(), rows: Vec::new(), whole: Vec::new(), empty: "" }
    }

    /// What a table says when there are no rows; nothing else than the headings if this is not called.
    pub fn when_empty(self, text: &'static str) -> Sheet {
        Sheet { empty: text, ..self }
    }

    pub fn whole(&mut self, key: &str, value: impl Into<Value>) {
        self.whole.push((key.to_owned(), value.into()));
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        assert!(cells.len() == self.columns.len(), "a row of {} has a cell for every column", self.name);
        self.rows.push(cells);
    }

    /// The whole sheet as bytes for stdout.
    pub fn render(&self, shape: Shape, paint: Paint) -> Vec<u8> {
        let text = match shape {
            Shape::Table => self.table(false, paint),
            Shape::Wide => self.table(true, paint),
            Shape::Json => self.document().to_json(),
            Shape::Yaml => self.document().to_yaml(),
            Shape::JsonLines => {
                self.records().iter().fold(String::new(), |all, record| all + &record.to_json_line() + "\n")
            }
            Shape::Raw => {
                let first = |row: &Vec<Cell>| match &row[0].value {
                    Value::Text(text) => text.clone(),
                    other => other.to_json_line(),
                };
                self.rows.iter().fold(String::new(), |all, row| all + &first(row) + "\n")
            }
        };
        text.into_bytes()
    }

    /// One record for each row.
    pub fn records(&self) -> Vec<Value> {
        let record = |row: &Vec<Cell>| {
            let entry = |(column, cell): (&Column, &Cell)| {
                (cell.key.unwrap_or(column.key).to_owned(), cell.value.clone())
            };
            Value::Map(self.columns.iter().zip(row).map(entry).collect())
        };
        self.rows.iter().map(record).collect()
    }

    /// What json and yaml print.
    pub fn document(&self) -> Value {
        let mut entries = self.whole.clone();
        entries.push((self.name.to_owned(), Value::List(self.records())));
        Value::Map(entries)
    }

    /// Without rules and frames, so that a line is a thing and a word is a column also for `grep` and `awk`.
    pub fn table(&self, wide: bool, paint: Paint) -> String {
        if self.rows.is_empty() && !self.empty.is_empty() {
            return format!("{}\n", self.empty);
        }
        let chosen: Vec<usize> =
            (0..self.columns.len()).filter(|at| wide || !self.columns[*at].wide).collect();
        let shown = |row: &[Cell], at: usize| match (&row[at].shown, self.columns[at].cut) {
            (text, _) if text.is_empty() => NOTHING.to_owned(),
            (text, columns) if columns > 0 && !wide => cut(text, columns),
            (text, _) => text.clone(),
        };
        let mut widths: Vec<usize> = chosen.iter().map(|at| width(self.columns[*at].heading)).collect();
        for row in &self.rows {
            for (widest, at) in widths.iter_mut().zip(&chosen) {
                *widest = (*widest).max(width(&shown(row, *at)));
            }
        }
        let mut out = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = (String, Tone)>| {
            let mut text = String::new();
            for ((cell, tone), (at, columns)) in cells.zip(chosen.iter().zip(&widths)) {
                let blanks = " ".repeat(columns - width(&cell));
                if !text.is_empty() {
                    text.push_str(GAP);
                }
                let painted = paint.tone(tone, &cell);
                if self.columns[*at].right {
                    text.push_str(&blanks);
                    text.push_str(&painted);
                } else {
                    text.push_str(&painted);
                    text.push_str(&blanks);
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut chosen.iter().map(|at| (self.columns[*at].heading.to_owned(), Tone::Strong)));
        for row in &self.rows {
            line(&mut chosen.iter().map(|at| (shown(row, *at), row[*at].tone)));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sheet {
        let columns = [
            Column::new("name", "NAME"),
            Column::number("size", "SIZE"),
            Column::new("up", "UP"),
            Column::new("urls", "URLS").only_wide(),
        ];
        let mut sheet = Sheet::new("members", &columns);
        sheet.whole("cluster_id", "1f");
        let urls = ["http://a".to_owned(), "http://b".to_owned()];
        sheet.row(vec![
            Cell::text("db1"),
            Cell::size(20_480),
            Cell::truth(true).tone(Tone::Good),
            Cell::texts(&urls),
        ]);
        sheet.row(vec![Cell::text("鍵"), Cell::size(5), Cell::nothing(), Cell::texts(&[])]);
        sheet
    }

    fn rendered(shape: Shape) -> String {
        String::from_utf8(sample().render(shape, Paint::NONE)).unwrap()
    }

    #[test]
    fn tables_align_and_wide_ones_have_all_columns() {
        assert_eq!(rendered(Shape::Table), "NAME    SIZE   UP\ndb1    20 kB   yes\n鍵       5 B   -\n");
        assert_eq!(
            rendered(Shape::Wide),
            "NAME    SIZE   UP    URLS\ndb1    20 kB   yes   http://a,http://b\n鍵       5 B   -     -\n"
        );
    }

    #[test]
    fn records_have_every_column_and_whole_numbers() {
        assert_eq!(
            rendered(Shape::JsonLines),
            "{\"name\":\"db1\",\"size\":20480,\"up\":true,\"urls\":[\"http://a\",\"http://b\"]}\n{\"name\":\"鍵\",\"size\":5,\"up\":null,\"urls\":[]}\n"
        );
        assert_eq!(
            rendered(Shape::Yaml),
            "cluster_id: \"1f\"\nmembers:\n  - name: db1\n    size: 20480\n    up: true\n    urls:\n      - \"http://a\"\n      - \"http://b\"\n  - name: \"鍵\"\n    size: 5\n    up: null\n    urls: []\n"
        );
        let json: serde_json::Value = serde_json::from_str(&rendered(Shape::Json)).unwrap();
        assert_eq!((&json["cluster_id"], &json["members"][0]["size"]), (&"1f".into(), &20_480.into()));
        assert_eq!(rendered(Shape::Raw), "db1\n鍵\n");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let painted = String::from_utf8(sample().render(Shape::Table, Paint::ALL)).unwrap();
        assert!(
            painted.contains("\x1b[32myes\x1b[0m")
                && painted.starts_with("\x1b[1mNAME\x1b[0m    \x1b[1mSIZE")
        );
    }

    #[test]
    fn an_empty_table_says_so() {
        let empty = Sheet::new("alarms", &[Column::new("id", "ID")]);
        assert_eq!(empty.clone().render(Shape::Table, Paint::NONE), b"ID\n");
        assert_eq!(empty.clone().when_empty("no alarms").render(Shape::Wide, Paint::NONE), b"no alarms\n");
        assert_eq!(empty.clone().render(Shape::Yaml, Paint::NONE), b"alarms: []\n");
        assert_eq!(empty.render(Shape::JsonLines, Paint::NONE), b"");
    }
}
