//! YAML as the JSON that it stands for. A few words of it can stand for any amount (aliases), so
//! what is put together is measured on the way.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The value that a document stands for, of about so many bytes as JSON at most.
pub fn read(text: &[u8], most: usize) -> Result<Value, String> {
    let left = Cell::new(most);
    Measured(&left).deserialize(serde_yaml_ng::Deserializer::from_slice(text)).map_err(|error| error.to_string())
}

/// The values of a text that may hold several documents, which together are of about so many bytes as JSON at
/// most. Documents that say nothing are left out.
pub fn read_all(text: &str, most: usize) -> Result<Vec<Value>, String> {
    let left = Cell::new(most);
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let values = documents.map(|document| Measured(&left).deserialize(document)).collect::<Result<Vec<_>, _>>();
    Ok(values.map_err(|error| error.to_string())?.into_iter().filter(|value| !value.is_null()).collect())
}

#[derive(Clone, Copy)]
struct Measured<'a>(&'a Cell<usize>);

impl Measured<'_> {
    fn take<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes + 1);
        self.0.set(left.ok_or_else(|| E::custom("what the YAML stands for is too large"))?);
        Ok(())
    }

    fn put<E: serde::de::Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.take(4)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Measured<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measured<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.put(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.put(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.put(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that JSON does not have"))?;
        self.put(number)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.take(value.len() + 2)?;
        Ok(Value::from(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.put(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.put(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let (mut object, mut merged) = (Map::new(), Vec::new());
        while let Some(name) = members.next_key::<String>()? {
            self.take(name.len() + 3)?;
            let value = members.next_value_seed(self)?;
            if name == "<<" {
                merged
                    .extend(objects(value).ok_or_else(|| A::Error::custom("<< must be an object, or a list of them"))?);
                continue;
            }
            if object.insert(name.clone(), value).is_some() {
                return Err(A::Error::custom(format!("{name:?} is given twice")));
            }
        }
        for (name, value) in merged.into_iter().flatten() {
            object.entry(name).or_insert(value);
        }
        Ok(Value::Object(object))
    }
}

/// What `<<` brings in: the first of several has the last word.
fn objects(value: Value) -> Option<Vec<Map<String, Value>>> {
    match value {
        Value::Object(members) => Some(vec![members]),
        Value::Array(items) => items.into_iter().map(|item| objects(item)?.pop()).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_json_that_it_stands_for() {
        let text = "steps:\n  - name: a\n    config: {n: 1, f: 1.5, t: true, z: ~, q: \"1\"}\n";
        let value = json!({"steps": [{"name": "a", "config": {"n": 1, "f": 1.5, "t": true, "z": null, "q": "1"}}]});
        assert_eq!(read(text.as_bytes(), 1_000), Ok(value));
        let merged = read(b"a: &x {n: 1, m: 2}\nb: {<<: *x, n: 3}\n", 1_000).map(|value| value["b"].clone());
        assert_eq!(merged, Ok(json!({"n": 3, "m": 2})));
        assert_eq!(read(b"a: &x [1, 2]\nb: *x\n", 1_000), Ok(json!({"a": [1, 2], "b": [1, 2]})));
    }

    #[test]
    fn what_stands_for_too_much_is_refused_on_the_way() {
        let list = vec!["x"; 1_000].join(", ");
        let again = vec!["*x"; 1_000].join(", ");
        let text = format!("x: &x [{list}]\ny: [{again}]\n");
        assert!(read(text.as_bytes(), 1 << 20).unwrap_err().contains("too large"));
    }

    #[test]
    fn several_documents_are_several_values() {
        assert_eq!(read_all("---\na: 1\n---\n# nothing\n---\nb: 2\n", 100), Ok(vec![json!({"a": 1}), json!({"b": 2})]));
        assert_eq!(read_all("{\"a\": 1}", 100), Ok(vec![json!({"a": 1})]));
        assert_eq!(read_all("", 100), Ok(vec![]));
        assert!(read_all("a: 1\n---\na: [", 100).is_err());
        let half = format!("a: {}\n", "x".repeat(60));
        assert!(read_all(&half, 100).is_ok());
        assert!(read_all(&format!("{half}---\n{half}"), 100).unwrap_err().contains("too large"));
    }

    #[test]
    fn what_json_does_not_have_is_refused() {
        for text in ["a: .nan", "a: 1\na: 2", "? [1]\n: 2", "a: ["] {
            let read = read(text.as_bytes(), 1_000);
            assert!(read.is_err(), "{text}: {read:?}");
        }
    }
}
