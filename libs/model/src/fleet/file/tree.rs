//! Parses YAML text to a tree whose nodes know their position.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, options};

use super::{error::FleetProblem, span::Span};

/// Nodes that aliases may add, beyond which a file is refused: aliases of aliases grow exponentially.
const MAX_NODES: usize = 1_000_000;
/// Nesting, aliases expanded, beyond which a file is refused. The format itself needs nine.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub span: Span,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    Scalar {
        text: String,
        /// Whether it was written without quotes, so that `true` is a truth value and `1` a number.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

impl Node {
    /// The node's kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// How many items or entries it has.
    pub fn len(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
        }
    }
}

/// A container that is still open.
struct Open {
    span: Span,
    anchor: usize,
    content: Content,
    depth_below: usize,
    size: usize,
}

enum Content {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, Span)>),
}

struct Anchored {
    node: Node,
    depth: usize,
    size: usize,
}

/// The tree of the one document in `text`.
pub(super) fn parse(text: &str) -> Result<Node, FleetProblem> {
    let options = options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder { open: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0 };
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| {
            let mark = error.marker();
            let span = Span { line: number(mark.line().max(1)), column: number(mark.col() + 1), width: 1 };
            FleetProblem::new(span, "", format!("this is not YAML: {}", error.info()), None)
        })?;
        builder.event(event, span_of(&span))?;
    }
    let nothing = Span { line: 1, column: 1, width: 1 };
    builder.root.ok_or_else(|| FleetProblem::new(nothing, "", "the file is empty".to_owned(), None))
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn span_of(span: &granit_parser::Span) -> Span {
    let (start, end) = (span.start, span.end);
    let same_line = start.line() == end.line();
    let width = if same_line { end.col().saturating_sub(start.col()).max(1) } else { 1 };
    Span { line: number(start.line().max(1)), column: number(start.col() + 1), width: number(width) }
}

struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    /// Nodes that aliases have added.
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), FleetProblem> {
        let wrong = |problem: &str| Err(FleetProblem::new(span, "", problem.to_owned(), None));
        if event.tag().is_some_and(|tag| tag.is_custom() || tag.core_suffix() != Some("str")) {
            return wrong("tags have no meaning in a fleet file");
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar { text: text.into_owned(), plain } };
                self.node(Node { span, value }, anchor, 0, 1)
            }
            Event::SequenceStart(_, anchor, _) => self.start(span, anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => self.start(span, anchor, Content::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return wrong("this closes nothing") };
                let value = match open.content {
                    Content::List(items) => Value::List(items),
                    Content::Map(entries, _) => Value::Map(entries),
                };
                let node = Node { span: open.span, value };
                self.node(node, open.anchor, open.depth_below + 1, open.size)
            }
            Event::Alias(id) => {
                let Some(found) = self.anchors.get(&id) else {
                    return wrong("an alias can't stand inside what it stands for");
                };
                let (depth, size) = (found.depth, found.size);
                // Before the copy is made, so that the limit also bounds the work.
                self.nodes += size;
                if self.nodes > MAX_NODES {
                    return wrong("aliases make this file too large");
                }
                let node = found.node.clone();
                self.node(node, 0, depth, size)
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                wrong("a fleet file holds one document, and here a second one begins")
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, span: Span, anchor: usize, content: Content) -> Result<(), FleetProblem> {
        self.open.push(Open { span, anchor, content, depth_below: 0, size: 1 });
        Ok(())
    }

    /// Adds a finished node to its parent.
    fn node(&mut self, node: Node, anchor: usize, depth: usize, size: usize) -> Result<(), FleetProblem> {
        let span = node.span;
        let wrong = |problem: &str| Err(FleetProblem::new(span, "", problem.to_owned(), None));
        if depth + self.open.len() > MAX_DEPTH {
            return wrong("this is nested too deeply");
        }
        if anchor != 0 {
            self.anchors.insert(anchor, Anchored { node: node.clone(), depth, size });
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.depth_below = parent.depth_below.max(depth);
        parent.size += size;
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map(entries, key) => match key.take() {
                Some((key, key_span)) => entries.push(Entry { key, key_span, value: node }),
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some((text, span)),
                    Value::Null => return wrong("a key is missing"),
                    Value::List(_) | Value::Map(_) => return wrong("a key must be a single value"),
                },
            },
        }
        Ok(())
    }
}
