//! All probers' words; who is silent, and who is doubted.
//!
//! A prober that sees everything down at once, in at least two clusters, while another one sees some of it up, is
//! doubted before its clusters are: its words are not used. Whether it is, is a function of the words as they stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tidegate_model::{
    ClusterName, ProberName, RegionName, Timestamp,
    health::CheckId,
    observation::{Observation, Target},
};

use crate::{
    settings::Damping,
    word::{Judgement, Thresholds, Word},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ProberId(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TargetId(usize);

/// A prober's name with its region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProberKey {
    pub(crate) region: RegionName,
    pub(crate) name: ProberName,
}

#[derive(Debug)]
struct Prober {
    key: ProberKey,
    heard_at: Timestamp,
    silent: bool,
    doubted: bool,
    targets: BTreeSet<TargetId>,
    /// Targets that it sees answering, held out or not.
    answering: usize,
    /// Targets that it sees failing, by cluster.
    failing: BTreeMap<ClusterName, usize>,
    /// Of those, the ones that a prober that is not silent sees answering.
    contradicted: usize,
}

impl Prober {
    fn to_be_doubted(&self) -> bool {
        !self.silent && self.answering == 0 && self.failing.len() >= 2 && self.contradicted > 0
    }
}

#[derive(Debug)]
struct Slot {
    target: Target,
    /// In the order of the probers' keys.
    words: Vec<(ProberId, Word)>,
    /// Probers that are not silent and see it answering.
    answering: usize,
}

/// What is known on a target.
#[derive(Debug)]
pub(crate) enum Testimony<'a> {
    /// Words that count, in the order of the probers' keys.
    Words(Vec<(&'a ProberKey, &'a Judgement)>),
    /// Only words of probers that are doubted.
    Doubted,
    /// Nobody who can be heard has a word.
    Silence,
}

/// Everybody's words.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    thresholds: BTreeMap<CheckId, Thresholds>,
    probers: Vec<Prober>,
    by_key: BTreeMap<ProberKey, ProberId>,
    slots: Vec<Slot>,
    by_target: BTreeMap<Target, TargetId>,
    holds: BTreeSet<(Timestamp, TargetId, ProberId)>,
    /// Targets to look at again.
    touched: BTreeSet<TargetId>,
    /// Places of probers that were forgotten, to be taken again.
    free_probers: Vec<ProberId>,
    /// Places of targets on which nobody has a word.
    free_slots: Vec<TargetId>,
}

impl Evidence {
    /// Takes the checks that the fleet knows, and judges what waited for one of them.
    pub(crate) fn know(
        &mut self,
        thresholds: BTreeMap<CheckId, Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) {
        self.thresholds = thresholds;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let known = self.thresholds.get(&slot.target.check).copied();
            let waiting: Vec<(ProberId, Word)> = slot
                .words
                .iter()
                .filter(|(_, word)| known.is_some() && *word.judgement() == Judgement::Undecided)
                .cloned()
                .collect();
            for (prober, mut word) in waiting {
                word.judge(known, damping, now);
                self.put(TargetId(index), prober, Some(word));
            }
        }
        self.doubt();
    }

    /// Takes what changed in a prober's table.
    pub(crate) fn observe(
        &mut self,
        key: ProberKey,
        changes: Vec<(Target, Option<Observation>)>,
        damping: &Damping,
        now: Timestamp,
    ) {
        let prober = self.hear(key, now);
        for (target, observation) in changes {
            self.observe_one(prober, target, observation, damping, now);
        }
        self.doubt();
    }

    /// Takes a prober's whole table.
    pub(crate) fn observe_all(
        &mut self,
        key: ProberKey,
        all: Vec<(Target, Observation)>,
        begins_anew: bool,
        damping: &Damping,
        now: Timestamp,
    ) {
        let prober = self.hear(key, now);
        let mut gone = self.probers[prober.0].targets.clone();
        if begins_anew {
            for target in &gone {
                let word = self.put(*target, prober, None).and_then(Word::sleep);
                if word.is_some() {
                    self.put(*target, prober, word);
                }
            }
        }
        for (target, observation) in all {
            if let Some(known) = self.by_target.get(&target) {
                gone.remove(known);
            }
            self.observe_one(prober, target, Some(observation), damping, now);
        }
        for target in gone {
            if !begins_anew {
                self.put(target, prober, None);
            }
        }
        self.doubt();
    }

    /// Takes a prober's heartbeat.
    pub(crate) fn heartbeat(&mut self, key: ProberKey, now: Timestamp) {
        self.hear(key, now);
        self.doubt();
    }

    /// Forgets a prober and all that it said.
    pub(crate) fn forget(&mut self, key: &ProberKey) {
        let Some(prober) = self.by_key.remove(key) else { return };
        for target in self.probers[prober.0].targets.clone() {
            self.put(target, prober, None);
        }
        self.silence(prober, true);
        self.free_probers.push(prober);
        self.doubt();
    }

    /// Lets time pass: ends holds that are over, and finds probers silent that are.
    pub(crate) fn advance(&mut self, silent_after: Duration, now: Timestamp) {
        while let Some((until, target, prober)) = self.holds.first().copied()
            && until <= now
        {
            let slot = &self.slots[target.0];
            let word = slot.words.iter().find(|(id, _)| *id == prober).map(|(_, word)| word.clone());
            if let Some(mut word) = word {
                word.release();
                self.put(target, prober, Some(word));
            }
        }
        for index in 0..self.probers.len() {
            let prober = &self.probers[index];
            if !prober.silent && prober.heard_at.plus(silent_after) <= now {
                self.silence(ProberId(index), true);
            }
        }
        self.doubt();
    }

    /// When [`Self::advance`] may change something next.
    pub(crate) fn next_deadline(&self, silent_after: Duration) -> Option<Timestamp> {
        let silence = self.probers.iter().filter(|p| !p.silent).map(|p| p.heard_at.plus(silent_after)).min();
        let release = self.holds.first().map(|(until, _, _)| *until);
        [silence, release].into_iter().flatten().min()
    }

    /// The cluster and check of each target that may be seen differently since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<(ClusterName, CheckId)> {
        let mut seen_anew = BTreeSet::new();
        for id in std::mem::take(&mut self.touched) {
            let Slot { target, words, .. } = &self.slots[id.0];
            seen_anew.insert((target.cluster.clone(), target.check));
            if words.is_empty() && self.by_target.remove(target).is_some() {
                self.free_slots.push(id);
            }
        }
        seen_anew
    }

    /// How many probers are not silent.
    pub(crate) fn heard(&self) -> usize {
        self.probers.iter().filter(|prober| !prober.silent).count()
    }

    /// What is known on `target`.
    pub(crate) fn on(&self, target: &Target) -> Testimony<'_> {
        let Some(id) = self.by_target.get(target) else { return Testimony::Silence };
        let mut doubted = false;
        let mut words = Vec::new();
        for (prober, word) in &self.slots[id.0].words {
            let prober = &self.probers[prober.0];
            if prober.silent || *word.judgement() == Judgement::Undecided {
                continue;
            }
            if prober.doubted {
                doubted = true;
            } else {
                words.push((&prober.key, word.judgement()));
            }
        }
        match (words.is_empty(), doubted) {
            (false, _) => Testimony::Words(words),
            (true, true) => Testimony::Doubted,
            (true, false) => Testimony::Silence,
        }
    }

    fn hear(&mut self, key: ProberKey, now: Timestamp) -> ProberId {
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                let prober = Prober {
                    key: key.clone(),
                    heard_at: now,
                    silent: false,
                    doubted: false,
                    targets: BTreeSet::new(),
                    answering: 0,
                    failing: BTreeMap::new(),
                    contradicted: 0,
                };
                let id = ProberId(place(&mut self.probers, self.free_probers.pop().map(|id| id.0), prober));
                self.by_key.insert(key, id);
                id
            }
        };
        self.probers[id.0].heard_at = now;
        self.silence(id, false);
        id
    }

    fn silence(&mut self, id: ProberId, silent: bool) {
        if self.probers[id.0].silent == silent {
            return;
        }
        // Taken out as it was and put in as it is, so that all counts follow.
        let targets = self.probers[id.0].targets.clone();
        let words: Vec<(TargetId, Word)> = targets
            .into_iter()
            .filter_map(|target| self.put(target, id, None).map(|word| (target, word)))
            .collect();
        self.probers[id.0].silent = silent;
        for (target, word) in words {
            self.put(target, id, Some(word));
        }
    }

    fn observe_one(
        &mut self,
        prober: ProberId,
        target: Target,
        observation: Option<Observation>,
        damping: &Damping,
        now: Timestamp,
    ) {
        let thresholds = self.thresholds.get(&target.check).copied();
        let id = match (self.by_target.get(&target), &observation) {
            (Some(id), _) => *id,
            (None, None) => return,
            (None, Some(_)) => {
                let slot = Slot { target: target.clone(), words: Vec::new(), answering: 0 };
                let id = TargetId(place(&mut self.slots, self.free_slots.pop().map(|id| id.0), slot));
                self.by_target.insert(target, id);
                id
            }
        };
        let Some(observation) = observation else {
            self.put(id, prober, None);
            return;
        };
        let known = self.slots[id.0].words.iter().find(|(p, _)| *p == prober).map(|(_, word)| word.clone());
        let word = match known {
            Some(mut word) => {
                word.hear(observation, thresholds, damping, now);
                word
            }
            None => Word::new(observation, thresholds, damping, now),
        };
        self.put(id, prober, Some(word));
    }

    /// The one place where words change: keeps all counts right, and returns the word that was there.
    fn put(&mut self, id: TargetId, prober: ProberId, word: Option<Word>) -> Option<Word> {
        let place = self.slots[id.0]
            .words
            .binary_search_by(|(other, _)| self.probers[other.0].key.cmp(&self.probers[prober.0].key));
        if let (Ok(at), Some(word)) = (place, &word)
            && self.slots[id.0].words[at].1.judgement() == word.judgement()
        {
            return Some(std::mem::replace(&mut self.slots[id.0].words[at].1, word.clone()));
        }
        let before = place.ok().map(|at| self.slots[id.0].words.remove(at).1);
        if let Some(before) = &before {
            self.discount(id, prober, before);
        }
        if let Some(word) = word {
            self.count(id, prober, &word);
            let (Ok(at) | Err(at)) = place;
            self.slots[id.0].words.insert(at, (prober, word));
        }
        self.touched.insert(id);
        before
    }

    fn count(&mut self, id: TargetId, prober: ProberId, word: &Word) {
        let Evidence { probers, slots, holds, .. } = self;
        let (slot, speaker) = (&mut slots[id.0], &mut probers[prober.0]);
        speaker.targets.insert(id);
        if let Some(until) = word.held_until() {
            holds.insert((until, id, prober));
        }
        match word.judgement() {
            Judgement::Undecided => {}
            Judgement::Failing { .. } => {
                *speaker.failing.entry(slot.target.cluster.clone()).or_default() += 1;
                speaker.contradicted += usize::from(slot.answering > 0);
            }
            Judgement::Passing { .. } | Judgement::HeldOut { .. } => {
                speaker.answering += 1;
                if !speaker.silent {
                    slot.answering += 1;
                    if slot.answering == 1 {
                        contradict(probers, slot, |contradicted| *contradicted += 1);
                    }
                }
            }
        }
    }

    fn discount(&mut self, id: TargetId, prober: ProberId, word: &Word) {
        let Evidence { probers, slots, holds, .. } = self;
        let (slot, speaker) = (&mut slots[id.0], &mut probers[prober.0]);
        speaker.targets.remove(&id);
        if let Some(until) = word.held_until() {
            holds.remove(&(until, id, prober));
        }
        match word.judgement() {
            Judgement::Undecided => {}
            Judgement::Failing { .. } => {
                if let Some(count) = speaker.failing.get_mut(&slot.target.cluster) {
                    *count -= 1;
                    if *count == 0 {
                        speaker.failing.remove(&slot.target.cluster);
                    }
                }
                speaker.contradicted -= usize::from(slot.answering > 0);
            }
            Judgement::Passing { .. } | Judgement::HeldOut { .. } => {
                speaker.answering -= 1;
                if !speaker.silent {
                    slot.answering -= 1;
                    if slot.answering == 0 {
                        contradict(probers, slot, |contradicted| *contradicted -= 1);
                    }
                }
            }
        }
    }

    /// Finds anew who is doubted.
    fn doubt(&mut self) {
        for prober in &mut self.probers {
            if prober.doubted != prober.to_be_doubted() {
                prober.doubted = !prober.doubted;
                self.touched.extend(prober.targets.iter().copied());
            }
        }
    }
}

/// Puts an item into a free place, or a new one, and returns which.
fn place<T>(items: &mut Vec<T>, free: Option<usize>, item: T) -> usize {
    match free {
        Some(at) => {
            items[at] = item;
            at
        }
        None => {
            items.push(item);
            items.len() - 1
        }
    }
}

/// Changes the count of contradictions of each prober that sees the target failing.
fn contradict(probers: &mut [Prober], slot: &Slot, change: impl Fn(&mut usize)) {
    for (other, word) in &slot.words {
        if matches!(word.judgement(), Judgement::Failing { .. }) {
            change(&mut probers[other.0].contradicted);
        }
    }
}

#[cfg(test)]
mod tests;
