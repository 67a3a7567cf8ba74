//! When leases end, decided purely: the leader's deadlines, renewals and checkpoints on a clock that is handed in.
//!
//! Not here: which leases exist and what they hold (state-machine), threads, real clocks, proposals.
