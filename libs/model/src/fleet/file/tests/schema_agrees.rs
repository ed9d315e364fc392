//! The schema and the parser take the same files. That neither knows a field that the other doesn't follows from
//! their one table, and from the assertions in `walk` that every field of it is read and no other.

use serde_json::{Value, json};

use super::{FULL, STARTER};
use crate::fleet::{
    Fleet,
    file::{
        fields::{FLEET, Kind, Record},
        schema,
        tree::{self, Node},
    },
};

/// The tree as YAML's core schema reads it.
fn as_json(node: &Node) -> Value {
    match &node.value {
        tree::Value::Null => Value::Null,
        tree::Value::List(items) => items.iter().map(as_json).collect(),
        tree::Value::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), as_json(&entry.value))).collect())
        }
        tree::Value::Scalar { text, plain } => match text.as_str() {
            "true" if *plain => json!(true),
            "false" if *plain => json!(false),
            number if *plain && number.parse::<i64>().is_ok() => json!(number.parse::<i64>().ok()),
            number if *plain && number.parse::<f64>().is_ok() => json!(number.parse::<f64>().ok()),
            text => json!(text),
        },
    }
}

/// The part of JSON Schema that our schema uses, without patterns.
fn valid(schema: &Value, value: &Value) -> bool {
    let kind_matches = |kind: &Value| match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        other => panic!("unknown type {other:?}"),
    };
    schema.as_object().expect("a schema is an object").iter().all(|(key, rule)| match key.as_str() {
        "type" => match rule {
            Value::Array(kinds) => kinds.iter().any(kind_matches),
            kind => kind_matches(kind),
        },
        "const" => rule == value,
        "enum" => rule.as_array().is_some_and(|words| words.contains(value)),
        "anyOf" => rule.as_array().is_some_and(|schemas| schemas.iter().any(|schema| valid(schema, value))),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| valid(rule, item))),
        "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap_or(0)),
        "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().unwrap_or(0)),
        "maxProperties" => {
            value.as_object().is_none_or(|fields| fields.len() as u64 <= rule.as_u64().unwrap_or(0))
        }
        "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= rule.as_u64().unwrap_or(0)),
        "minimum" => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap_or(0.0)),
        "maximum" => value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap_or(0.0)),
        "required" => value.as_object().is_none_or(|object| {
            rule.as_array().into_iter().flatten().all(|name| object.contains_key(name.as_str().unwrap_or("")))
        }),
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let declared = schema["properties"].as_object();
            let mut others =
                object.iter().filter(|(name, _)| declared.is_none_or(|d| !d.contains_key(*name)));
            others.all(|(_, value)| rule.is_object() && valid(rule, value))
        }),
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(name, value)| rule.get(name).is_none_or(|schema| valid(schema, value)))
        }),
        "uniqueItems" | "pattern" | "propertyNames" | "description" | "$schema" | "title" => true,
        other => panic!("the schema uses {other}, which this test does not know"),
    })
}

fn take(text: &str) -> (bool, bool) {
    let tree = tree::parse(text).expect("YAML");
    (valid(&schema(), &as_json(&tree)), Fleet::parse(text, "f").is_ok())
}

#[test]
fn the_examples_are_valid_by_schema_and_parser() {
    assert_eq!(take(STARTER), (true, true));
    assert_eq!(take(FULL), (true, true));
}

#[test]
fn mistakes_of_form_are_refused_by_both() {
    let broken = [
        ("capacity: 2000", "capacity: lots"),
        ("capacity: 2000", "capacity: 0"),
        ("priority: 1", "priority: 256"),
        ("protocol: http2", "protocol: http3"),
        ("region: eu-west", "regoin: eu-west"),
        ("hosts: [\"*\"]", "hosts: []"),
        ("{ tcp: true }", "{ tcp: false }"),
        ("location: [53.3, -6.3]", "location: [53.3]"),
        ("timeout: 15s", "timeout: [15s]"),
        ("{ path_prefix: /api,", "{ path_prefix: /api, prefix: /x,"),
        ("chain: tls/shop.crt, key: tls/shop.key", "chain: tls/shop.crt"),
    ];
    for (right, wrong) in broken {
        let text = FULL.replacen(right, wrong, 1);
        assert_ne!(text, FULL, "{right} is not in the example");
        assert_eq!(take(&text), (false, false), "{wrong}");
    }
}

/// The full example uses every field there is, so it proves that each can be given.
#[test]
fn every_field_is_in_the_full_example() {
    fn missing(record: &Record, nodes: &[&Value], path: &str, absent: &mut Vec<String>) {
        for field in record.fields {
            let given: Vec<&Value> = nodes.iter().filter_map(|node| node.get(field.name)).collect();
            let path = format!("{path}.{}", field.name);
            if given.is_empty() {
                absent.push(path);
            } else {
                missing_in(&field.kind, &given, &path, absent);
            }
        }
    }
    fn missing_in(kind: &Kind, nodes: &[&Value], path: &str, absent: &mut Vec<String>) {
        match kind {
            Kind::Record(record) => {
                let maps: Vec<&Value> = nodes.iter().copied().filter(|node| node.is_object()).collect();
                missing(record, &maps, path, absent);
            }
            Kind::List(item, _) | Kind::Set(item, _) => {
                let items: Vec<&Value> = nodes.iter().filter_map(|n| n.as_array()).flatten().collect();
                missing_in(item, &items, path, absent);
            }
            Kind::Names(item, _) => {
                let items: Vec<&Value> =
                    nodes.iter().filter_map(|n| n.as_object()).flat_map(|o| o.values()).collect();
                missing_in(item, &items, path, absent);
            }
            Kind::Any(kinds) => kinds.iter().for_each(|kind| missing_in(kind, nodes, path, absent)),
            _ => {}
        }
    }
    let tree = as_json(&tree::parse(FULL).expect("YAML"));
    let mut absent = Vec::new();
    missing(&FLEET, &[&tree], "", &mut absent);
    assert_eq!(absent, Vec::<String>::new());
}
