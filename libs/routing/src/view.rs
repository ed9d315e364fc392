//! From words to views, and from views to verdicts.
//!
//! A region's view of an endpoint is what most of its probers that can be heard say; when they are even, it passes:
//! one that reaches it proves that it can be reached, and edges find out quickly by themselves where it can't.
//! A verdict is what one region makes of all views: its own is decisive for what it can reach, the others tell whether
//! the endpoint is down or only the path to it, and stand in where it has none of its own.

use tidegate_model::{RegionName, Timestamp, verdict::Verdict};

use crate::{
    evidence::ProberKey,
    word::{Before, Judgement},
};

/// One region's view of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    region: RegionName,
    passes: bool,
    /// Whether it would pass if what is held out counted as passing.
    answers: bool,
    /// Since when it passes, where it had failed before.
    recovered_at: Option<Timestamp>,
}

/// All regions' views of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Views {
    /// In the order of the regions' names.
    views: Vec<View>,
    passing: usize,
    answering: usize,
}

/// What one region makes of an endpoint or a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) verdict: Verdict,
    /// It is not up only because it is held out: it answers, but flapped.
    pub(crate) held_out: bool,
    /// Since when it is up, where it had not been before; known only where it is up.
    pub(crate) recovered_at: Option<Timestamp>,
}

impl Standing {
    /// Of what nobody has a word on.
    pub(crate) const UNKNOWN: Standing =
        Standing { verdict: Verdict::Unknown, held_out: false, recovered_at: None };
}

impl Views {
    /// The views that follow from `words`, which are in the order of the probers' keys.
    pub(crate) fn of(words: &[(&ProberKey, &Judgement)]) -> Views {
        let views: Vec<View> = words
            .chunk_by(|(a, _), (b, _)| a.region == b.region)
            .map(|words| region_view(words[0].0.region.clone(), words))
            .collect();
        Views {
            passing: views.iter().filter(|view| view.passes).count(),
            answering: views.iter().filter(|view| view.answers).count(),
            views,
        }
    }

    /// What `region` makes of it.
    pub(crate) fn from(&self, region: &RegionName) -> Standing {
        let own = self.views.binary_search_by(|view| view.region.cmp(region)).ok().map(|at| &self.views[at]);
        match own {
            Some(View { passes: true, recovered_at, .. }) => {
                Standing { verdict: Verdict::Up, held_out: false, recovered_at: *recovered_at }
            }
            Some(View { passes: false, answers, .. }) => Standing {
                verdict: if self.passing > 0 { Verdict::PathDown } else { Verdict::Down },
                held_out: *answers,
                recovered_at: None,
            },
            None if self.passing > 0 => {
                let passing = self.views.iter().filter(|view| view.passes);
                let recovered_at = passing.map(|view| view.recovered_at).min().flatten();
                Standing { verdict: Verdict::Up, held_out: false, recovered_at }
            }
            None if !self.views.is_empty() => {
                Standing { verdict: Verdict::Down, held_out: self.answering > 0, recovered_at: None }
            }
            None => Standing::UNKNOWN,
        }
    }

    /// The regions that reach it.
    pub(crate) fn regions_that_pass(&self) -> impl Iterator<Item = &RegionName> {
        self.views.iter().filter(|view| view.passes).map(|view| &view.region)
    }

    /// All times at which a region saw it return.
    pub(crate) fn recoveries(&self) -> impl Iterator<Item = Timestamp> {
        self.views.iter().filter(|view| view.passes).filter_map(|view| view.recovered_at)
    }
}

/// The view of one region from its probers' words, at least one.
fn region_view(region: RegionName, words: &[(&ProberKey, &Judgement)]) -> View {
    let mut passing: Vec<Option<Timestamp>> = Vec::new();
    let (mut held_out, mut count) = (0, 0_usize);
    for (_, judgement) in words.iter().filter(|(_, judgement)| !came_late(judgement, words)) {
        count += 1;
        match judgement {
            Judgement::Passing { before: Before::Unseen, .. } => passing.push(None),
            Judgement::Passing { since, before: Before::Failed(_) } => passing.push(Some(*since)),
            Judgement::HeldOut { .. } => held_out += 1,
            Judgement::Failing { .. } | Judgement::Undecided => {}
        }
    }
    // It passes since that many said so.
    let needed = count.div_ceil(2);
    passing.sort_unstable();
    let passes = passing.len() >= needed;
    View {
        region,
        passes,
        answers: passing.len() + held_out >= needed,
        recovered_at: if passes { passing[needed - 1] } else { None },
    }
}

/// Whether a word is left out: of a prober that first looked after another one had seen a failure, and so knows nothing of it. It
/// would end the other's hold or slow start, whenever a prober is started anew.
fn came_late(word: &Judgement, words: &[(&ProberKey, &Judgement)]) -> bool {
    let Judgement::Passing { since: first_look, before: Before::Unseen } = word else { return false };
    words.iter().any(|(_, other)| match other {
        Judgement::Passing { before: Before::Failed(failed_at), .. }
        | Judgement::HeldOut { failed_at, .. } => failed_at <= first_look,
        Judgement::Passing { before: Before::Unseen, .. }
        | Judgement::Failing { .. }
        | Judgement::Undecided => false,
    })
}

/// What a region makes of a cluster whose endpoints it sees like this.
pub(crate) fn cluster(endpoints: impl Iterator<Item = Standing>) -> Standing {
    let mut all: Option<Standing> = None;
    for endpoint in endpoints {
        all = Some(match all {
            None => endpoint,
            Some(so_far) => better(so_far, endpoint),
        });
    }
    all.unwrap_or(Standing::UNKNOWN)
}

fn better(a: Standing, b: Standing) -> Standing {
    let rank = |standing: &Standing| match standing.verdict {
        Verdict::Up => 0,
        Verdict::Unknown => 1,
        Verdict::PathDown => 2,
        Verdict::Down => 3,
    };
    let best = if rank(&b) < rank(&a) { b } else { a };
    match best.verdict {
        // The first endpoint that was up made the cluster so.
        Verdict::Up if a.verdict == b.verdict => {
            Standing { recovered_at: a.recovered_at.min(b.recovered_at), ..best }
        }
        Verdict::Up | Verdict::Unknown => best,
        Verdict::PathDown | Verdict::Down => Standing { held_out: a.held_out || b.held_out, ..best },
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::observation::Failure;

    use super::*;

    fn key(region: &str, name: &str) -> ProberKey {
        ProberKey { region: region.parse().unwrap(), name: name.parse().unwrap() }
    }

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    const UP: Judgement = Judgement::Passing { since: Timestamp(0), before: Before::Unseen };
    const DOWN: Judgement = Judgement::Failing { failure: Failure::NoAnswer };

    fn back(at: u64) -> Judgement {
        Judgement::Passing { since: Timestamp(at), before: Before::Failed(Timestamp(1)) }
    }

    fn verdict(words: &[(&ProberKey, &Judgement)], from: &str) -> Verdict {
        Views::of(words).from(&region(from)).verdict
    }

    #[test]
    fn what_only_this_region_cannot_reach_is_path_down() {
        let (eu, us) = (key("eu", "p"), key("us", "p"));
        let words = [(&eu, &UP), (&us, &DOWN)];
        assert_eq!(verdict(&words, "us"), Verdict::PathDown);
        assert_eq!(verdict(&words, "eu"), Verdict::Up);
        assert_eq!(verdict(&words, "asia"), Verdict::Up, "others' word stands in");
        assert_eq!(verdict(&[(&eu, &DOWN), (&us, &DOWN)], "us"), Verdict::Down);
        assert_eq!(verdict(&[], "us"), Verdict::Unknown);
    }

    #[test]
    fn a_region_says_what_most_of_its_probers_say_and_passes_when_they_are_even() {
        let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
        assert_eq!(verdict(&[(&a, &DOWN), (&b, &UP)], "us"), Verdict::Up);
        assert_eq!(verdict(&[(&a, &DOWN), (&b, &UP), (&c, &DOWN)], "us"), Verdict::Down);
    }

    #[test]
    fn an_endpoint_is_back_since_most_said_so() {
        let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
        let since = |words: &[(&ProberKey, &Judgement)]| Views::of(words).from(&region("us")).recovered_at;
        assert_eq!(since(&[(&a, &back(7)), (&b, &back(3)), (&c, &back(5))]), Some(Timestamp(5)));
        assert_eq!(since(&[(&a, &UP), (&b, &back(3)), (&c, &UP)]), None);
    }

    #[test]
    fn a_prober_that_looked_first_after_a_failure_has_no_say_in_the_return() {
        let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
        let new = Judgement::Passing { since: Timestamp(9), before: Before::Unseen };
        let held = |until| Judgement::HeldOut {
            failure: Failure::NoAnswer,
            failed_at: Timestamp(1),
            until: Timestamp(until),
        };
        let from_us = |words: &[(&ProberKey, &Judgement)]| Views::of(words).from(&region("us"));
        let standing = from_us(&[(&a, &new), (&b, &back(7))]);
        assert_eq!((standing.verdict, standing.recovered_at), (Verdict::Up, Some(Timestamp(7))));
        let standing = from_us(&[(&a, &new), (&b, &held(12))]);
        assert_eq!((standing.verdict, standing.held_out), (Verdict::Down, true));
        let standing = from_us(&[(&a, &new), (&b, &held(12)), (&c, &back(7))]);
        assert_eq!((standing.verdict, standing.recovered_at), (Verdict::Up, Some(Timestamp(7))));
        let standing = from_us(&[(&a, &new), (&b, &UP), (&c, &held(12))]);
        assert_eq!(
            (standing.verdict, standing.recovered_at),
            (Verdict::Up, None),
            "as without the one that came late"
        );
        // One that never saw it fail, although it looked, stands by its own word.
        let standing = from_us(&[(&a, &UP), (&b, &held(12))]);
        assert_eq!((standing.verdict, standing.recovered_at), (Verdict::Up, None));
        // Nobody has seen a failure, or it is failing still.
        assert_eq!(from_us(&[(&a, &new), (&b, &UP)]).recovered_at, None);
        assert_eq!(from_us(&[(&a, &new), (&b, &DOWN)]).verdict, Verdict::Up);
    }

    #[test]
    fn a_cluster_is_up_since_its_first_endpoint_was() {
        let up = |recovered_at| Standing { verdict: Verdict::Up, held_out: false, recovered_at };
        let down = Standing { verdict: Verdict::Down, held_out: true, recovered_at: None };
        assert_eq!(cluster([down, up(Some(Timestamp(9)))].into_iter()), up(Some(Timestamp(9))));
        assert_eq!(cluster([up(None), up(Some(Timestamp(9)))].into_iter()), up(None));
        assert_eq!(cluster([down, down].into_iter()), down);
    }
}
