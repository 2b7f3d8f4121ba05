//! cpr-load
fn main() {}
