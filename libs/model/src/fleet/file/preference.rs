//! The clusters of a service or a route, and how one of them is chosen.

use std::collections::BTreeMap;

use super::{
    fields,
    tree::{Node, Value},
    walk::Walk,
};
use crate::{ClusterName, fleet::Preference, unit::Weight};

/// A list in its order, `{ nearest: […] }` or `{ weights: {…} }`.
pub(super) fn preference(walk: &mut Walk, node: &Node) -> Option<Preference> {
    let Value::Map(entries) = &node.value else {
        return names(walk, node).map(Preference::Ordered);
    };
    let by_weight = entries.iter().any(|entry| entry.key == "weights");
    if by_weight && entries.iter().any(|entry| entry.key == "nearest") {
        walk.error(node.span, "clusters are chosen by nearness or by weight, not both", None);
        return None;
    }
    if by_weight {
        let mut fields = walk.record(node, node.span, &fields::WEIGHTS)?;
        let weights = walk.required(&mut fields, "weights", |w, node, _| weights(w, node)).value();
        fields.finish();
        weights.map(Preference::Weighted)
    } else {
        let mut fields = walk.record(node, node.span, &fields::NEAREST)?;
        let nearest = walk.required(&mut fields, "nearest", |w, node, _| nearest(w, node)).value();
        fields.finish();
        nearest.map(Preference::Nearest)
    }
}

fn names(walk: &mut Walk, node: &Node) -> Option<Vec<ClusterName>> {
    let listed = walk.set(node, "cluster", |w, node| {
        w.reference::<ClusterName>(node, "cluster", |names| &names.clusters)
    })?;
    Some(listed.into_iter().map(|(name, _)| name).collect())
}

fn nearest(walk: &mut Walk, node: &Node) -> Option<Vec<ClusterName>> {
    if let Value::Scalar { text, .. } = &node.value
        && text == "auto"
    {
        let help = Some("list them: { nearest: [us-east-1, eu-west-1] }".to_owned());
        walk.error(node.span, "no cluster announces its hosts yet, so `auto` can't find any", help);
        return None;
    }
    names(walk, node)
}

fn weights(walk: &mut Walk, node: &Node) -> Option<BTreeMap<ClusterName, Weight>> {
    let weights = walk.map(node, |w, node, cluster: &ClusterName, at| {
        w.known(cluster.as_str(), at, "cluster", |names| &names.clusters);
        let number = w.integer(node, 0..=u64::from(Weight::MAX.get()))?;
        u16::try_from(number).ok().and_then(Weight::new)
    })?;
    let all_read = matches!(&node.value, Value::Map(entries) if entries.len() == weights.len());
    if all_read && weights.values().all(|weight| weight.get() == 0) || matches!(&node.value, Value::Null) {
        let help = Some("at least one cluster needs a weight above 0".to_owned());
        walk.error(node.span, "these weights send no request anywhere", help);
        return None;
    }
    Some(weights)
}
