//! Reading a tree field by field, keeping all errors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    str::FromStr,
};

use super::{
    error::FleetProblem,
    fields::Record,
    span::Span,
    suggestion::did_you_mean,
    tree::{Entry, Node, Value},
};

/// The result of reading a field.
pub(super) enum Field<T> {
    /// It is absent.
    Absent,
    /// It is wrong or missing, and an error reports that.
    Wrong,
    /// It is valid.
    Given(T, Span),
}

impl<T> Field<T> {
    pub fn value(self) -> Option<T> {
        match self {
            Field::Given(value, _) => Some(value),
            Field::Absent | Field::Wrong => None,
        }
    }

    pub fn or(self, default: T) -> T {
        self.value().unwrap_or(default)
    }

    pub fn or_default(self) -> T
    where
        T: Default,
    {
        self.value().unwrap_or_default()
    }

    /// The value and its position, when it is valid.
    pub fn given(&self) -> Option<(&T, Span)> {
        match self {
            Field::Given(value, span) => Some((value, *span)),
            Field::Absent | Field::Wrong => None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }
}

/// The names that a file declares, whether what they name is valid or not: a mistake in a cluster must not make every
/// reference to it wrong, too.
#[derive(Default)]
pub(super) struct Names {
    pub regions: BTreeSet<String>,
    pub clusters: BTreeSet<String>,
    pub listeners: BTreeSet<String>,
}

impl Names {
    pub fn declared(root: &Node) -> Names {
        let keys = |section: &str| {
            let Value::Map(entries) = &root.value else { return BTreeSet::new() };
            let found = entries.iter().find(|entry| entry.key == section);
            match found.map(|entry| &entry.value.value) {
                Some(Value::Map(entries)) => entries.iter().map(|entry| entry.key.clone()).collect(),
                _ => BTreeSet::new(),
            }
        };
        Names { regions: keys("regions"), clusters: keys("clusters"), listeners: keys("listeners") }
    }
}

/// The position of an item in a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    index: usize,
    pub span: Span,
}

/// A map that is being read as a record.
pub(super) struct Fields<'t> {
    record: &'static Record,
    /// The position that is reported when a field is missing.
    pub at: Span,
    entries: &'t [Entry],
    asked: Vec<&'static str>,
}

impl Fields<'_> {
    /// Asserts that every field of the record was read.
    pub fn finish(self) {
        debug_assert!(
            self.record.fields.iter().all(|field| self.asked.contains(&field.name)),
            "a field of {} is in the table and not read: {:?}",
            self.record.name,
            self.record.fields.iter().find(|f| !self.asked.contains(&f.name)).map(|f| f.name)
        );
    }
}

pub(super) struct Walk {
    pub names: Names,
    path: String,
    errors: Vec<FleetProblem>,
}

impl Walk {
    pub fn new(names: Names) -> Walk {
        Walk { names, path: String::new(), errors: Vec::new() }
    }

    pub fn into_errors(self) -> Vec<FleetProblem> {
        self.errors
    }

    pub fn error(&mut self, span: Span, problem: impl Into<String>, help: Option<String>) {
        self.errors.push(FleetProblem::new(span, &self.path, problem.into(), help));
    }

    /// An error in an item of the list that is being read.
    pub fn error_at(&mut self, at: At, problem: impl Into<String>, help: Option<String>) {
        self.inside(&format!("[{}]", at.index), |w| w.error(at.span, problem, help));
    }

    /// Calls `act` for what is one `step` below the present path.
    pub fn inside<T>(&mut self, step: &str, act: impl FnOnce(&mut Walk) -> T) -> T {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = act(self);
        self.path.truncate(length);
        result
    }

    pub fn expected(&mut self, node: &Node, what: &str) {
        self.error(node.span, format!("expected {what}, found {}", node.kind()), None);
    }

    /// Opens `node` as a record. `at` is where a missing field is reported: the record's name, where it has one.
    pub fn record<'t>(&mut self, node: &'t Node, at: Span, record: &'static Record) -> Option<Fields<'t>> {
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Scalar { .. } | Value::List(_) => {
                self.expected(node, &format!("a map with the fields of {}", record.name));
                return None;
            }
        };
        let mut seen = HashMap::new();
        for entry in entries {
            if record.fields.iter().all(|field| field.name != entry.key) {
                let known: Vec<&str> = record.fields.iter().map(|field| field.name).collect();
                let help = did_you_mean(&entry.key, &known)
                    .unwrap_or_else(|| format!("{} has: {}", record.name, known.join(", ")));
                self.inside(&entry.key, |w| {
                    w.error(entry.key_span, format!("unknown field {:?}", entry.key), Some(help));
                });
            } else {
                self.refuse_repeated(&mut seen, entry);
            }
        }
        Some(Fields { record, at, entries, asked: Vec::new() })
    }

    /// Reports `entry` when its key is already among those `seen`, which are kept with their lines.
    fn refuse_repeated<'t>(&mut self, seen: &mut HashMap<&'t str, u32>, entry: &'t Entry) {
        if let Some(line) = seen.insert(&entry.key, entry.key_span.line) {
            let help = format!("the first one is on line {line}");
            self.inside(&entry.key, |w| {
                w.error(entry.key_span, format!("{:?} is here twice", entry.key), Some(help));
            });
        }
    }

    /// Reads the field `name`, when it is there. `read` gets the value and the position of its key.
    pub fn optional<'t, T>(
        &mut self,
        fields: &mut Fields<'t>,
        name: &'static str,
        read: impl FnOnce(&mut Walk, &'t Node, Span) -> Option<T>,
    ) -> Field<T> {
        debug_assert!(
            fields.record.fields.iter().any(|field| field.name == name),
            "{name} is read and not in the table of {}",
            fields.record.name
        );
        fields.asked.push(name);
        let entries = fields.entries;
        let Some(entry) = entries.iter().find(|entry| entry.key == name) else { return Field::Absent };
        let most =
            fields.record.fields.iter().find(|field| field.name == name).and_then(|field| field.kind.most());
        let count = entry.value.len();
        if let Some(most) = most.filter(|most| count > *most) {
            // Not read, so that what is in it brings no thousands of errors.
            let problem = format!("{count} of them are more than {most}, which is the most");
            self.inside(name, |w| w.error(entry.key_span, problem, None));
            return Field::Wrong;
        }
        let value = self.inside(name, |w| read(w, &entry.value, entry.key_span));
        value.map_or(Field::Wrong, |value| Field::Given(value, entry.value.span))
    }

    /// Reads the field `name`, which must be there.
    pub fn required<'t, T>(
        &mut self,
        fields: &mut Fields<'t>,
        name: &'static str,
        read: impl FnOnce(&mut Walk, &'t Node, Span) -> Option<T>,
    ) -> Field<T> {
        let field = self.optional(fields, name, read);
        if field.is_absent() {
            self.error(fields.at, format!("{} lacks {name:?}", fields.record.name), None);
            return Field::Wrong;
        }
        field
    }

    /// A map from names to what `read` makes of the value and the position of its name. Wrong entries are skipped.
    pub fn map<'t, K, T>(
        &mut self,
        node: &'t Node,
        mut read: impl FnMut(&mut Walk, &'t Node, &K, Span) -> Option<T>,
    ) -> Option<BTreeMap<K, T>>
    where
        K: FromStr<Err: Display> + Ord,
    {
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Scalar { .. } | Value::List(_) => {
                self.expected(node, "a map from names");
                return None;
            }
        };
        let mut map = BTreeMap::new();
        let mut seen = HashMap::new();
        for entry in entries {
            self.refuse_repeated(&mut seen, entry);
            self.inside(&entry.key, |w| match entry.key.parse::<K>() {
                Ok(key) => {
                    if let Some(value) = read(w, &entry.value, &key, entry.key_span) {
                        map.insert(key, value);
                    }
                }
                Err(problem) => w.error(entry.key_span, problem.to_string(), None),
            });
        }
        Some(map)
    }

    /// A list of what `read` makes of its items, each with its position. Wrong items are skipped.
    pub fn list<'t, T>(
        &mut self,
        node: &'t Node,
        mut read: impl FnMut(&mut Walk, &'t Node) -> Option<T>,
    ) -> Option<Vec<(T, At)>> {
        let Value::List(items) = &node.value else {
            self.expected(node, "a list");
            return None;
        };
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            if let Some(value) = self.inside(&format!("[{index}]"), |w| read(w, item)) {
                list.push((value, At { index, span: item.span }));
            }
        }
        Some(list)
    }

    /// A list that holds at least one item and none twice.
    pub fn set<'t, T: Ord + Display>(
        &mut self,
        node: &'t Node,
        what: &str,
        read: impl FnMut(&mut Walk, &'t Node) -> Option<T>,
    ) -> Option<Vec<(T, At)>> {
        let list = self.list(node, read)?;
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.error(node.span, format!("there is no {what} in this list"), None);
            return None;
        }
        let mut seen = BTreeSet::new();
        for (item, at) in &list {
            if !seen.insert(item) {
                self.error_at(*at, format!("the {what} {item} is in this list twice"), None);
            }
        }
        Some(list)
    }
}
