//! Ownership of a guest between two processes.
