//! A JSON Schema of the fleet file, for editors.

use serde_json::{Map, Value, json};

use super::{
    fields::{FLEET, Kind, Record},
    scalar,
};
use crate::name::MAX_NAME_LENGTH;

/// A JSON Schema (draft 2020-12) of the fleet file. It knows each field and its form; what only the whole file can
/// tell (names that refer to nothing, contradictions) is found by [`Fleet::parse`](crate::fleet::Fleet::parse).
pub fn schema() -> Value {
    let mut schema = record(&FLEET);
    if let Value::Object(object) = &mut schema {
        object.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        object.insert("title".to_owned(), json!("Tidegate fleet file"));
    }
    schema
}

fn record(record: &Record) -> Value {
    let mut properties = Map::new();
    for field in record.fields {
        let mut property = kind(&field.kind);
        if let Value::Object(object) = &mut property {
            object.insert("description".to_owned(), json!(field.doc));
        }
        properties.insert(field.name.to_owned(), property);
    }
    let required: Vec<&str> = record.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    // A map in which nothing is required may also be left empty, which YAML reads as null.
    let types = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
    json!({ "type": types, "properties": properties, "required": required, "additionalProperties": false })
}

fn kind(of: &Kind) -> Value {
    let name = format!("^[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}$");
    match of {
        // YAML reads some text without quotes as a number or a truth value; it is still meant as text.
        Kind::Text => json!({ "type": ["string", "number", "boolean"], "minLength": 1 }),
        // YAML reads a name such as 7 as a number.
        Kind::Name => json!({ "type": ["string", "integer"], "pattern": name }),
        Kind::Address => json!({ "type": "string", "pattern": "^.+:[0-9]+$" }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::True => json!({ "const": true }),
        Kind::Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Location => {
            json!({ "type": "array", "items": { "type": "number" }, "minItems": 2, "maxItems": 2 })
        }
        Kind::SigningKey => json!({ "type": "string", "pattern": "^ed25519:[0-9a-fA-F]{64}$" }),
        Kind::Cidr => json!({ "type": "string", "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$" }),
        Kind::Duration => json!({ "type": "string", "pattern": scalar::DURATION_PATTERN }),
        Kind::Size => json!({ "type": ["string", "integer"], "pattern": scalar::SIZE_PATTERN, "minimum": 0 }),
        Kind::Percent => json!({ "type": "string", "pattern": scalar::PERCENT_PATTERN }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::List(item, most) => json!({ "type": "array", "items": kind(item), "maxItems": most }),
        Kind::Set(item, most) => {
            json!({ "type": "array", "items": kind(item), "minItems": 1, "maxItems": most, "uniqueItems": true })
        }
        Kind::Names(value, most) => json!({
            "maxProperties": most,
            "type": ["object", "null"],
            "propertyNames": { "pattern": name },
            "additionalProperties": kind(value),
        }),
        Kind::Texts => {
            json!({
                "type": ["object", "null"],
                "maxProperties": of.most(),
                "additionalProperties": { "type": ["string", "number", "boolean"] },
            })
        }
        Kind::Record(of) => record(of),
        Kind::Any(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
    }
}
