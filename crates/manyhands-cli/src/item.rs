//! Items as text: what `put` reads and `get` prints, plain or as JSON.
//!
//! Invariant: whatever was taken out of a queue is printed, whole: an item without a JSON form as its
//! pickle.

use std::collections::HashSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use manyhands::Value;
use manyhands::text::printable;
use manyhands::wire::pickle::{Limits, Payload, from_value};
use serde_json::Value as Json;

/// Reads the item that `json` stands for.
pub(crate) fn from_json(json: &str) -> Result<Value> {
    let value = serde_json::from_str(json).with_context(|| format!("not JSON: {json}"))?;
    // The parser would make floats of them without a word.
    if let Some(number) = numbers(json).into_iter().find(|number| is_wide(number)) {
        bail!("the number {number} does not fit 64 bits");
    }
    Ok(value)
}

/// The numbers in a JSON text, and the empty pieces between them.
fn numbers(json: &str) -> Vec<&str> {
    let (mut in_text, mut escaped) = (false, false);
    let is_number = |char| matches!(char, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
    let pieces = json.split(move |char| {
        let was_in_text = in_text;
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_text = !in_text,
            _ => {}
        }
        was_in_text || !is_number(char)
    });
    pieces.collect()
}

fn is_wide(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty()
        && digits.bytes().all(|digit| digit.is_ascii_digit())
        && number.parse::<i64>().is_err()
        && number.parse::<u64>().is_err()
}

/// An item as one line of text: a `str` as it is, other values in Python's notation.
pub(crate) fn to_text(item: &Payload) -> String {
    match item.value(&Limits::default()) {
        Ok(Value::Str(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => format!("pickle.loads(bytes.fromhex('{}'))", hexadecimal(item)),
    }
}

/// An item as one line of JSON, with a note if it has no form of its own there.
///
/// As by Python's `json.dumps`: tuples are lists, and keys that are `int`, `float`, `bool` or `None`
/// become text. What that refuses (bytes, sets, objects, infinities) becomes
/// `{"pickle": "<hexadecimal>", "python": "<Python's notation>"}`.
pub(crate) fn to_json(item: &Payload) -> (String, Option<String>) {
    let mut json = String::new();
    let written = match item.value(&Limits::default()) {
        Ok(value) => write_json(&value, &mut json),
        Err(error) => Err(error.into()),
    };
    let note = written.err().map(|error| {
        json =
            serde_json::json!({ "pickle": hexadecimal(item), "python": to_text(item) }).to_string();
        format!("an item has no JSON form ({error:#}); it is printed as its pickle")
    });
    // JSON escapes the first 32 itself; a terminal also obeys some behind ASCII.
    (escape_controls(&json, |_| false), note)
}

fn write_json(value: &Value, json: &mut String) -> Result<()> {
    match value {
        Value::None => json.push_str("null"),
        Value::Bool(bool) => write!(json, "{bool}")?,
        Value::Int(int) => write!(json, "{int}")?,
        Value::BigInt(_) => match (from_value(value.clone()), from_value(value.clone())) {
            (Ok::<i128, _>(int), _) => write!(json, "{int}")?,
            (_, Ok::<u128, _>(int)) => write!(json, "{int}")?,
            _ => bail!("an int over 128 bits"),
        },
        Value::Float(float) if float.is_finite() => write!(json, "{}", Json::from(*float))?,
        Value::Str(text) => write!(json, "{}", Json::from(text.as_str()))?,
        Value::List(items) | Value::Tuple(items) => write_list(items, json)?,
        Value::Dict(pairs) => write_object(pairs, json)?,
        other => bail!("{}", kind(other)),
    }
    Ok(())
}

fn write_list(items: &[Value], json: &mut String) -> Result<()> {
    for (i, item) in items.iter().enumerate() {
        json.push(if i == 0 { '[' } else { ',' });
        write_json(item, json)?;
    }
    json.push_str(if items.is_empty() { "[]" } else { "]" });
    Ok(())
}

fn write_object(pairs: &[(Value, Value)], json: &mut String) -> Result<()> {
    let mut known = HashSet::new();
    for (i, (key, value)) in pairs.iter().enumerate() {
        let key = key_text(key)?;
        json.push(if i == 0 { '{' } else { ',' });
        write!(json, "{}:", Json::from(key.as_str()))?;
        write_json(value, json)?;
        ensure!(known.insert(key), "a dict has two keys with the same text");
    }
    json.push_str(if pairs.is_empty() { "{}" } else { "}" });
    Ok(())
}

fn key_text(key: &Value) -> Result<String> {
    match key {
        Value::Str(text) => Ok(text.clone()),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            let mut text = String::new();
            write_json(key, &mut text)?;
            Ok(text)
        }
        other => bail!("{} as a key", kind(other)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bytes(_) => "bytes",
        Value::ByteArray(_) => "bytearray",
        Value::Tuple(_) => "a tuple",
        Value::Set(_) => "a set",
        Value::FrozenSet(_) => "a frozenset",
        Value::Float(_) => "a float that is no number",
        Value::BigInt(_) => "an int over 64 bits",
        _ => "a Python object",
    }
}

fn hexadecimal(item: &Payload) -> String {
    item.standalone().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `text` without what a terminal obeys or hides, but for what to `keep`.
pub(crate) fn escape_controls(text: &str, keep: impl Fn(char) -> bool) -> String {
    printable(text, keep).into_owned()
}

#[cfg(test)]
mod tests {
    use manyhands::wire::pickle::{Dialect, to_payload};

    use super::*;

    fn check(value: &Value, expected: &str) {
        let payload = to_payload(value, Dialect::Python3).unwrap();
        assert_eq!(to_json(&payload), (expected.to_owned(), None));
    }

    fn text(text: &str) -> Value {
        Value::Str(text.to_owned())
    }

    #[test]
    fn plain_data_is_json_as_python_writes_it() {
        check(&Value::None, "null");
        check(&Value::Tuple(vec![Value::Bool(true), Value::Float(1.5)]), "[true,1.5]");
        check(&Value::List(vec![]), "[]");
        check(&text("a\"\n\u{9b}\u{202e}ä"), "\"a\\\"\\n\\u009b\\u202eä\"");
        check(&Value::int_from_le_bytes(&u128::MAX.to_le_bytes()), "-1");
        check(&Value::int_from_le_bytes(&(1i128 << 64).to_le_bytes()), "18446744073709551616");
        let dict = [(text("z"), Value::Dict(vec![])), (Value::Int(1), Value::Int(-2))];
        check(&Value::Dict(dict.to_vec()), "{\"z\":{},\"1\":-2}");
    }

    #[test]
    fn what_json_does_not_have_is_printed_as_its_pickle() {
        let check = |value: &Value, expected: &str| {
            let payload = to_payload(value, Dialect::Python3).unwrap();
            let (json, note) = to_json(&payload);
            let json: Json = serde_json::from_str(&json).unwrap();
            assert_eq!(json["python"], value.to_string());
            let digits = json["pickle"].as_str().unwrap();
            assert!(digits.starts_with("80") && digits.ends_with("2e"), "{digits}");
            assert!(note.unwrap().contains(expected));
        };
        check(&Value::Bytes(b"a".to_vec()), "(bytes)");
        check(&Value::List(vec![Value::Float(f64::NAN)]), "(a float that is no number)");
        check(&Value::Dict(vec![(Value::Tuple(vec![]), Value::None)]), "(a tuple as a key)");
        let twice = vec![(text("1"), Value::None), (Value::Int(1), Value::None)];
        check(&Value::Dict(twice), "two keys with the same text");
    }

    #[test]
    fn an_item_that_is_no_plain_data_is_printed_all_the_same() {
        let lone_surrogate = b"\x80\x03X\x03\0\0\0\xed\xa0\x80.";
        let payload = Payload::from_standalone(lone_surrogate[..].into(), &Limits::default());
        let payload = payload.unwrap();
        let expected = "pickle.loads(bytes.fromhex('80025803000000eda0802e'))";
        assert_eq!(to_text(&payload), expected);
        assert!(to_json(&payload).0.starts_with("{\"pickle\":\"8002"));
    }

    #[test]
    fn json_is_read_as_plain_data() {
        let check =
            |json, expected: &str| assert_eq!(from_json(json).unwrap().to_string(), expected);
        check("[1, -2.5, \"ä\", null, true, {\"a\": []}]", "[1, -2.5, 'ä', None, True, {'a': []}]");
        check("18446744073709551615", "0xffffffffffffffff");
        check("\"99999999999999999999 \\\" 99999999999999999999\"", {
            "'99999999999999999999 \\\" 99999999999999999999'"
        });
        check("1e30", "1e30");
    }

    #[test]
    fn a_number_that_would_change_is_refused() {
        for json in [
            "18446744073709551616",
            "[1, -9223372036854775809]",
            "{\"a\\\"\":1000000000000000000000}",
        ] {
            let error = from_json(json).unwrap_err().to_string();
            assert!(error.ends_with("does not fit 64 bits"), "{error}");
        }
        assert!(from_json("{a: 1}").unwrap_err().to_string().starts_with("not JSON: {a: 1}"));
    }
}
