//! aivillage
fn main() {}
