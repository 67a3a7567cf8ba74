//! The thread that writes records, so that nobody else waits for where they go.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use super::{
    journal::{Fields, Journal, SETTLE_WAIT},
    record::{self, Record},
};
use crate::{
    config::{LogFormat, LogLevel, LogOutput},
    refusal::Refusal,
};

/// Lines that wait to be written. A burst of this many takes the process no longer than a second to write to any working disk; beyond
/// it lines are dropped, since memory and request latency matter more.
const QUEUE_LINES_MAX: usize = 8192;

/// Longest wait for the last lines when the process ends: a stuck pipe must not keep it from ending.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// In which forms records are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Forms {
    pub line: LogFormat,
    /// Stderr leads to the journal, which takes fields.
    pub has_journal: bool,
}

/// A record in these forms.
pub struct Entry {
    line: String,
    journal: Option<Fields>,
    priority: &'static str,
}

impl Entry {
    /// `text` stands for the message where people read it.
    pub fn of(record: &Record<'_>, text: Option<&str>, forms: Forms) -> Entry {
        Entry {
            line: record.line(forms.line),
            journal: forms.has_journal.then(|| record.journal(text)),
            priority: record::priority(record.level),
        }
    }
}

/// Where records go.
enum Sink {
    Lines(Box<dyn Write + Send>),
    Journal(Journal),
}

impl Sink {
    /// An output that fails is tried again with the next record: there is nowhere to complain to. What the journal does not take goes to
    /// stderr, which leads to it by another way.
    fn write(&mut self, entry: &Entry) {
        match self {
            Sink::Lines(lines) => {
                let _ = lines.write_all(entry.line.as_bytes()).and_then(|()| lines.flush());
            }
            Sink::Journal(journal) => {
                let sent = entry.journal.as_ref().map(|fields| journal.send(fields.bytes()));
                if !matches!(sent, Some(Ok(()))) {
                    let _ = write!(io::stderr(), "<{}>{}", entry.priority, entry.line);
                }
            }
        }
    }
}

impl Sink {
    /// What was written is where it should be, as far as can be told.
    fn settle(&self) {
        if let Sink::Journal(journal) = self {
            let _ = journal.settle(SETTLE_WAIT);
        }
    }
}

enum Message {
    Entry(Box<Entry>),
    Flush(SyncSender<()>),
}

/// Hands lines to the writing thread. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Opens every output first: a log file that cannot be opened is a refusal.
    pub fn start(
        outputs: &[LogOutput],
        forms: Forms,
        mut journal: Option<Journal>,
    ) -> Result<Writer, Refusal> {
        let mut sinks: Vec<Sink> = Vec::new();
        for output in outputs {
            sinks.push(match output {
                LogOutput::Stderr => match journal.take() {
                    Some(journal) => Sink::Journal(journal),
                    None => Sink::Lines(Box::new(io::stderr())),
                },
                LogOutput::Stdout => Sink::Lines(Box::new(io::stdout())),
                LogOutput::File(path) => Sink::Lines(Box::new(
                    open(path).map_err(|error| Refusal::io("write the log to", path, &error))?,
                )),
            });
        }
        let (queue, lines) = mpsc::sync_channel(QUEUE_LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = dropped.clone();
        let spawned = thread::Builder::new()
            .name("log-out".into())
            .spawn(move || run(&lines, &mut sinks, &counter, forms));
        spawned
            .map_err(|error| Refusal::io("start the thread that writes to", Path::new("the log"), &error))?;
        Ok(Writer { queue, dropped })
    }

    /// Never waits.
    pub fn write(&self, entry: Entry) {
        match self.queue.try_send(Message::Entry(Box::new(entry))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits for room and until the record is out, at most [`FLUSH_WAIT`].
    pub fn write_and_flush(&self, entry: Entry) {
        let writer = self.clone();
        // In a thread of its own, because waiting for room in the queue has no deadline.
        let (done, finished) = mpsc::sync_channel(1);
        let sent = thread::Builder::new().spawn(move || {
            let _ = writer.queue.send(Message::Entry(Box::new(entry)));
            writer.flush();
            let _ = done.send(());
        });
        if sent.is_ok() {
            let _ = finished.recv_timeout(FLUSH_WAIT);
        }
    }

    /// Waits until everything queued so far is out, at most [`FLUSH_WAIT`].
    pub fn flush(&self) {
        let (done, finished) = mpsc::sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = finished.recv_timeout(FLUSH_WAIT);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// How long a count of dropped lines may wait to be told when nothing else is written.
const DROPPED_CHECK: Duration = Duration::from_secs(1);

fn run(lines: &Receiver<Message>, sinks: &mut [Sink], dropped: &AtomicU64, forms: Forms) {
    loop {
        let message = lines.recv_timeout(DROPPED_CHECK);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let record = Record {
                level: LogLevel::Warn,
                caller: "cairnd/logging/writer.rs",
                message: "log lines were dropped: they came faster than they could be written",
                fields: vec![("dropped".to_owned(), lost.to_string())],
            };
            write_all(sinks, &Entry::of(&record, None, forms));
        }
        match message {
            Ok(Message::Entry(entry)) => write_all(sinks, &entry),
            Ok(Message::Flush(done)) => {
                sinks.iter().for_each(Sink::settle);
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn write_all(sinks: &mut [Sink], entry: &Entry) {
    for sink in sinks {
        sink.write(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink that waits for permission, so that the queue fills.
    struct Gate(Receiver<()>, SyncSender<String>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_drops_lines_counts_them_and_says_so() {
        let (open, gate) = mpsc::sync_channel(8);
        let (out, written) = mpsc::sync_channel(8);
        let (queue, lines) = mpsc::sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer { queue, dropped: dropped.clone() };
        for number in 0..5 {
            writer.write(Entry { line: format!("line {number}\n"), journal: None, priority: "6" });
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
        drop(writer);
        for _ in 0..3 {
            open.send(()).unwrap();
        }
        let forms = Forms { line: LogFormat::Json, has_journal: false };
        run(&lines, &mut [Sink::Lines(Box::new(Gate(gate, out)))], &dropped, forms);
        let written: Vec<String> = written.try_iter().collect();
        assert_eq!(written.len(), 3, "{written:?}");
        assert!(written[0].contains("\"dropped\":3"), "{written:?}");
        assert_eq!(written[1..], ["line 0\n", "line 1\n"]);
    }
}
