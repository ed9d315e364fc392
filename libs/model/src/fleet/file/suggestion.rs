//! Suggestions for misspelt words.

/// A question that names the word of `known` nearest to `written`, when one is near enough.
pub(super) fn did_you_mean(written: &str, known: &[&str]) -> Option<String> {
    let distance = |candidate: &str| strsim::osa_distance(&written.to_lowercase(), &candidate.to_lowercase());
    let nearest = known.iter().min_by_key(|candidate| distance(candidate))?;
    (distance(nearest) <= (written.chars().count() / 3).max(1)).then(|| format!("did you mean {nearest:?}?"))
}
