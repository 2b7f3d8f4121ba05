//! cpr-save
fn main() {}
