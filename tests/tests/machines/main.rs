//! Stories on machines with systemd as their first process, with the packages installed. `tests/run` runs them beside all others, since they
//! wait most of the time.

mod guides_carried_out;
mod operators_day;
