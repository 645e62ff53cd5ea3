//! Settings of a strategy as people write them: a map of names and values, read into typed fields.
//!
//! Every key is asked for by the strategy that knows it; what nobody asked for is unknown and an error with the nearest
//! name. All faults are collected, so one answer names them all.

use serde_json::{Map, Value};

use aivillage_base::suggest;

/// A fault of one setting: key and one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFault {
    /// The key.
    pub key: String,
    /// What is wrong and what is possible.
    pub detail: String,
}

/// Reads one strategy's settings.
#[derive(Debug)]
pub struct Settings<'a> {
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
    faults: Vec<SettingFault>,
}

impl<'a> Settings<'a> {
    /// Settings to be read.
    #[must_use]
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, known: Vec::new(), faults: Vec::new() }
    }

    /// A number from `low` to `high`, both included; `default` if absent.
    pub fn number(&mut self, key: &'static str, low: f64, high: f64, default: f64) -> f64 {
        self.optional_number(key, low, high).unwrap_or(default)
    }

    /// A number from `low` to `high`, both included; None if absent.
    pub fn optional_number(&mut self, key: &'static str, low: f64, high: f64) -> Option<f64> {
        let valid = |v: &Value| v.as_f64().filter(|v| (low..=high).contains(v));
        self.value(key, valid, || format!("a number from {low} to {high}"))
    }

    /// A whole number from `low` to `high`, both included; None if absent.
    pub fn integer(&mut self, key: &'static str, low: u32, high: u32) -> Option<u32> {
        let valid = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok()).filter(|v| (low..=high).contains(v));
        self.value(key, valid, || format!("a whole number from {low} to {high}"))
    }

    /// A whole number from `low` to `high`, both included; absent = a fault that says what `meaning` it has, and `low`.
    pub fn required_integer(&mut self, key: &'static str, low: u32, high: u32, meaning: &str) -> u32 {
        if !self.map.contains_key(key) {
            self.fault(key, format!("is missing; {meaning} is needed: a whole number from {low} to {high}"));
        }
        self.integer(key, low, high).unwrap_or(low)
    }

    /// A list of at most 1,000 texts; empty if absent.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let valid = |v: &Value| v.as_array().filter(|a| a.len() <= 1_000).and_then(|a| a.iter().map(text).collect());
        self.value(key, valid, || "a list of at most 1000 texts".to_owned()).unwrap_or_default()
    }

    /// Says that a value which is in range for itself does not fit another one.
    pub fn fault(&mut self, key: &'static str, detail: String) {
        self.faults.push(SettingFault { key: key.to_owned(), detail });
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        valid: impl Fn(&Value) -> Option<T>,
        want: impl Fn() -> String,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.map.get(key)?;
        let found = valid(value);
        if found.is_none() {
            self.faults
                .push(SettingFault { key: key.to_owned(), detail: format!("{value} was given; {} is needed", want()) });
        }
        found
    }

    /// All faults, unknown keys included.
    #[must_use]
    pub fn finish(mut self, strategy: &str) -> Vec<SettingFault> {
        for key in self.map.keys().filter(|k| !self.known.contains(&k.as_str())) {
            let detail = suggest::unknown(&format!("{strategy} setting"), key, &self.known);
            self.faults.push(SettingFault { key: key.clone(), detail });
        }
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_with_its_range_or_the_nearest_key() {
        let map = serde_json::json!({"beta": 0.7, "bta": 1});
        let mut settings = Settings::new(map.as_object().unwrap());
        assert!((settings.number("beta", 0.0, 0.5, 0.1) - 0.1).abs() < f64::EPSILON);
        let faults = settings.finish("trimmed_mean");
        assert_eq!(faults.len(), 2);
        assert!(faults[0].detail.contains("0 to 0.5"), "{}", faults[0].detail);
        assert!(faults[1].detail.contains("beta"), "{}", faults[1].detail);
    }
}
