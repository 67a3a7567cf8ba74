//! Watches, decided purely: who gets which event of which revision, in what order, and what happens to those who cannot keep up.
//!
//! Not here: threads, clocks, the store (history is asked for and handed in), the wire beyond the bytes of a response.
