//! A command's arguments: each is taken by name and type, and what nobody took is refused by name.

use serde_json::{Map, Value};

use super::control::CommandError;

/// The members of a JSON object, not yet taken.
#[derive(Debug, Default)]
pub(super) struct Args(Map<String, Value>);

impl Args {
    /// The members of `value`, which the error calls `name`.
    pub fn new(name: &str, value: Value) -> Result<Self, CommandError> {
        match value {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(wrong_type(name, "object")),
        }
    }

    /// A member that may be there.
    pub fn optional_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// A member that must be there.
    pub fn value(&mut self, name: &str) -> Result<Value, CommandError> {
        self.optional_value(name)
            .ok_or_else(|| CommandError::generic(format!("parameter '{name}' is missing")))
    }

    /// A string that may be there.
    pub fn optional_string(&mut self, name: &str) -> Result<Option<String>, CommandError> {
        match self.optional_value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(name, "string")),
        }
    }

    /// A string that must be there.
    pub fn string(&mut self, name: &str) -> Result<String, CommandError> {
        let value = self.value(name)?;
        value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(name, "string"))
    }

    /// A boolean that may be there.
    pub fn optional_bool(&mut self, name: &str) -> Result<Option<bool>, CommandError> {
        self.optional_value(name)
            .map(|value| value.as_bool().ok_or_else(|| wrong_type(name, "boolean")))
            .transpose()
    }

    /// A boolean that must be there.
    pub fn bool(&mut self, name: &str) -> Result<bool, CommandError> {
        self.value(name)?.as_bool().ok_or_else(|| wrong_type(name, "boolean"))
    }

    /// An unsigned number that may be there.
    pub fn optional_u64(&mut self, name: &str) -> Result<Option<u64>, CommandError> {
        self.optional_value(name)
            .map(|value| value.as_u64().ok_or_else(|| wrong_type(name, "uint64")))
            .transpose()
    }

    /// A list that may be there.
    pub fn optional_list(&mut self, name: &str) -> Result<Option<Vec<Value>>, CommandError> {
        match self.optional_value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(wrong_type(name, "array")),
        }
    }

    /// A list of strings that may be there.
    pub fn optional_strings(&mut self, name: &str) -> Result<Option<Vec<String>>, CommandError> {
        let Some(items) = self.optional_list(name)? else { return Ok(None) };
        let strings = items.into_iter().map(|item| match item {
            Value::String(text) => Ok(text),
            _ => Err(wrong_type(name, "array of strings")),
        });
        strings.collect::<Result<_, _>>().map(Some)
    }

    /// Ends the taking: what is left is unexpected.
    pub fn finish(self) -> Result<(), CommandError> {
        match self.0.keys().next() {
            Some(name) => Err(CommandError::generic(format!("parameter '{name}' is unexpected"))),
            None => Ok(()),
        }
    }
}

fn wrong_type(name: &str, expected: &str) -> CommandError {
    CommandError::generic(format!("invalid parameter type for '{name}', expected: {expected}"))
}
