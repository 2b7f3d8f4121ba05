//! `--device DRIVER,KEY=VALUE,…`: the form in which devices are given on the command line.

use std::fmt::Display;
use std::str::FromStr;

use crate::config::ConfigError;

/// A device's options, taken one by one; what is left in the end is an error.
#[derive(Debug)]
pub struct Options {
    driver: String,
    values: Vec<(String, String)>,
}

impl Options {
    /// Reads `DRIVER[,KEY=VALUE…]`. A comma in a value is written twice.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut parts = split(text).into_iter();
        let driver = parts.next().unwrap_or_default();
        let mut options = Self { driver, values: Vec::new() };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| options.wrong("", &part, "KEY=VALUE"))?;
            if options.values.iter().any(|(known, _)| known == key) {
                return Err(options.wrong(key, value, "each key only once"));
            }
            options.values.push((key.into(), value.into()));
        }
        Ok(options)
    }

    /// The driver: what comes before the first comma.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Refuses another driver than the one that is being configured.
    pub fn expect_driver(&self, driver: &str) -> Result<(), ConfigError> {
        if self.driver == driver {
            return Ok(());
        }
        Err(ConfigError::Value { key: "device".into(), value: self.driver.clone(), expected: driver.into() })
    }

    /// Takes a value as it stands.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let at = self.values.iter().position(|(known, _)| known == key)?;
        Some(self.values.swap_remove(at).1)
    }

    /// Takes `on` or `off`; `default` if the key is not there.
    pub fn take_switch(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key).as_deref() {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(self.wrong(key, other, "on or off")),
        }
    }

    /// Takes a value that has a form of its own; `expected` says which.
    pub fn take_parsed<T: FromStr>(&mut self, key: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| self.wrong(key, &value, expected))
    }

    /// Ends the taking: a key that nobody took is refused. `known` are the keys that there are.
    pub fn finish(mut self, known: &str) -> Result<(), ConfigError> {
        match self.values.pop() {
            Some((key, value)) => Err(self.wrong(&key, &value, format!("one of the keys {known}"))),
            None => Ok(()),
        }
    }

    /// A value that its key does not take.
    pub fn wrong(&self, key: &str, value: &str, expected: impl Display) -> ConfigError {
        let dot = if key.is_empty() { "" } else { "." };
        ConfigError::Value {
            key: format!("{}{dot}{key}", self.driver),
            value: value.into(),
            expected: expected.to_string(),
        }
    }
}

/// Splits at single commas; a doubled one stands for itself.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_comma_stands_for_itself() {
        let mut options = Options::parse("disk,path=/a,,b,readonly=on").unwrap();
        assert_eq!(options.driver(), "disk");
        assert_eq!(options.take("path").unwrap(), "/a,b");
        assert!(options.take_switch("readonly", false).unwrap());
        options.finish("path, readonly").unwrap();
    }

    #[test]
    fn a_doubled_an_unknown_and_a_bare_key_are_refused_and_named() {
        for (text, named) in
            [("disk,a=1,a=2", "disk.a"), ("disk,colour=red", "disk.colour"), ("disk,a", "'a'")]
        {
            let refused = Options::parse(text).and_then(|options| options.finish("path"));
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
