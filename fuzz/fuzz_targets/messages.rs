//! Feeds `messages` of the fuzz targets' bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aivillage_fuzz::messages(data));
