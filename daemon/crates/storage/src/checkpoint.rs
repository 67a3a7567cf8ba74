//! The index checkpoint file.
