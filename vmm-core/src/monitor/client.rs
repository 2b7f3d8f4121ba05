//! A QMP client: blocking, with a deadline on everything.
