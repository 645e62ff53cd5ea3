//! Who can take part in a round, and who is chosen: pure.

use std::collections::{BTreeMap, BTreeSet};

use aivillage_base::rng::SeededRng;
use aivillage_base::wire::helper::HelperKey;
use aivillage_base::wire::{DataRequirements, DataSummary, NodeType, Peer};
use aivillage_base::{Architecture, NodeName, Task};
use aivillage_privacy::secagg::helper::is_vouched_for;

use crate::config::Selection;
use crate::record::JobRecord;
use crate::spec::{JobSpec, Start};

/// A connected node, as far as recruiting looks at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Who.
    pub peer: Peer,
    /// What data it has, by shape.
    pub data: Vec<DataSummary>,
    /// What kinds of node it is.
    pub node_types: Vec<NodeType>,
    /// Measured speed, 10^9 operations a second.
    pub compute_gflops: f64,
    /// Of a helper: the key that seeds are sealed to.
    pub helper: Option<Box<HelperKey>>,
}

/// The key of the job's helper, if it is here; None = the job has none.
///
/// # Errors
/// A sentence for the job's status: it is not here, or is none.
pub fn helper(spec: &JobSpec, candidates: &BTreeMap<NodeName, Candidate>) -> Result<Option<HelperKey>, String> {
    let Some(name) = &spec.helper else { return Ok(None) };
    let Some(candidate) = candidates.get(name) else {
        return Err(format!(
            "the job's helper {name} is not connected: its owner runs it with `aivillage helper join`"
        ));
    };
    match candidate.helper.as_deref().copied().filter(|key| key.id == candidate.peer.id && is_vouched_for(key)) {
        Some(key) => Ok(Some(key)),
        None => Err(format!("{name} is no helper: its owner runs it as a node, and not with `aivillage helper join`")),
    }
}

/// Does this data set meet the job's requirements?
#[must_use]
pub fn fits(data: &DataSummary, need: &DataRequirements) -> bool {
    let classes = match data.task {
        Task::Classification { classes } => Some(classes),
        Task::Regression => None,
    };
    need.dataset.as_ref().is_none_or(|name| *name == data.name)
        && need.input.as_ref().is_none_or(|input| *input == data.input)
        && need.classes.is_none_or(|n| classes == Some(n))
        && data.rows >= need.min_rows.unwrap_or(1)
}

/// Can it be invited to a job at all?
fn able(job: &JobRecord, candidate: &Candidate) -> bool {
    // Who takes masks away does not put any on.
    candidate.helper.is_none()
        && (job.spec.mobile_friendly || !candidate.node_types.contains(&NodeType::Mobile))
        && !job.declined.contains_key(&candidate.peer.name)
        && !job.excluded.contains_key(&candidate.peer.name)
}

fn data_fits(job: &JobRecord, candidate: &Candidate, architecture: &Architecture) -> bool {
    candidate.data.iter().any(|d| fits(d, &job.spec.data) && matches(d, architecture))
}

/// Could this node be invited to the job, whose architecture is fixed?
#[must_use]
pub fn eligible(job: &JobRecord, candidate: &Candidate) -> bool {
    let fits = |architecture| able(job, candidate) && data_fits(job, candidate, architecture);
    job.architecture.as_ref().is_some_and(fits)
}

/// The architecture and the next cohort, in name order; or what is missing, in words. Nodes `at_work` for the job already
/// have their places before others.
///
/// # Errors
/// A sentence for the job's status.
pub fn cohort(
    job: &JobRecord,
    candidates: &BTreeMap<NodeName, Candidate>,
    at_work: &BTreeSet<NodeName>,
    selection: Selection,
) -> Result<(Architecture, Vec<Peer>), String> {
    helper(&job.spec, candidates)?;
    let min = job.spec.min_participants as usize;
    let able: Vec<&Candidate> = candidates.values().filter(|c| able(job, c)).collect();
    let architecture = match &job.architecture {
        Some(architecture) => architecture.clone(),
        None => first_architecture(job, &able, min)?,
    };
    let mut eligible: Vec<&Candidate> = able.into_iter().filter(|c| data_fits(job, c, &architecture)).collect();
    if let Some(set) = &job.opening {
        eligible.retain(|c| set.binary_search(&c.peer.name).is_ok());
        let absent: Vec<&str> =
            set.iter().filter(|name| !eligible.iter().any(|c| c.peer.name == **name)).map(NodeName::as_str).collect();
        if !absent.is_empty() {
            return Err(format!(
                "the sum of this round may have been opened for exactly {} nodes, and with others their difference could be \
                 read: it waits for {}; cancel the job and start anew with another seed if they do not come back",
                set.len(),
                absent.join(", ")
            ));
        }
    }
    if eligible.len() < min {
        return Err(missing(job, candidates.len(), eligible.len()));
    }
    // Only while there are enough others: it may be somebody else's doing that they were not heard.
    let heard = |c: &&Candidate| !job.withheld.contains(&c.peer.name);
    if job.opening.is_none() && eligible.iter().filter(|c| heard(c)).count() >= min {
        eligible.retain(heard);
    }
    let max = job.spec.max_participants as usize;
    if eligible.len() > max {
        choose(&mut eligible, job, selection);
        eligible.sort_by_key(|c| !at_work.contains(&c.peer.name));
        eligible.truncate(max);
    }
    let mut cohort: Vec<Peer> = eligible.into_iter().map(|c| c.peer.clone()).collect();
    cohort.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((architecture, cohort))
}

fn matches(data: &DataSummary, architecture: &Architecture) -> bool {
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    data.task == architecture.task && values(&data.input) == values(&architecture.input)
}

fn missing(job: &JobRecord, connected: usize, eligible: usize) -> String {
    let min = job.spec.min_participants;
    let mut text = format!("{min} participants are needed; {eligible} of {connected} connected nodes are eligible");
    if !job.declined.is_empty() {
        let names: Vec<String> = job.declined.iter().map(|(n, d)| format!("{n} ({})", d.rule)).collect();
        text.push_str(&format!("; declined by themselves: {}", names.join(", ")));
    }
    if !job.excluded.is_empty() {
        let names: Vec<String> = job.excluded.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        text.push_str(&format!("; left out for what they sent: {}", names.join(", ")));
    }
    text
}

/// The shape that most nodes' data has; ties go to the first node by name.
fn first_architecture(job: &JobRecord, able: &[&Candidate], min: usize) -> Result<Architecture, String> {
    let recipe = match &job.spec.start {
        Start::Model(model) => return Ok(model.architecture.clone()),
        Start::Recipe(recipe) => recipe,
    };
    let mut shapes: Vec<(&[usize], Task, usize)> = Vec::new();
    let mut problem = None;
    for data in able.iter().flat_map(|c| &c.data).filter(|d| fits(d, &job.spec.data)) {
        if let Err(e) = recipe.build(&data.input, data.task) {
            problem.get_or_insert(e.0);
            continue;
        }
        match shapes.iter_mut().find(|(input, task, _)| *input == data.input && *task == data.task) {
            Some((_, _, count)) => *count += 1,
            None => shapes.push((&data.input, data.task, 1)),
        }
    }
    let best = shapes.iter().rev().max_by_key(|(_, _, count)| *count);
    match best {
        Some((input, task, count)) if *count >= min => recipe.build(input, *task).map_err(|e| e.0),
        Some((_, _, count)) => Err(missing(job, able.len(), *count)),
        None => {
            let why = problem.map_or_else(String::new, |p| format!("; {p}"));
            Err(format!("{}{why}", missing(job, able.len(), 0)))
        }
    }
}

/// The most parameters the job's model can have, by its start model, its requirements and the data that nodes have
/// reported; None if nothing tells yet.
#[must_use]
pub fn parameters_max(spec: &JobSpec, data: &[DataSummary]) -> Option<usize> {
    let recipe = match &spec.start {
        Start::Model(model) => return model.architecture.parameters().ok(),
        Start::Recipe(recipe) => recipe,
    };
    let size = |input: &[usize], task| recipe.build(input, task).ok()?.parameters().ok();
    let required = spec.data.input.as_ref().zip(spec.data.classes);
    let required = required.and_then(|(input, classes)| size(input, Task::Classification { classes }));
    let fitting = data.iter().filter(|d| fits(d, &spec.data)).filter_map(|d| size(&d.input, d.task));
    fitting.chain(required).max()
}

fn choose(eligible: &mut [&Candidate], job: &JobRecord, selection: Selection) {
    match selection {
        Selection::CapabilityAware => {
            eligible.sort_by(|a, b| {
                b.compute_gflops.total_cmp(&a.compute_gflops).then_with(|| a.peer.name.cmp(&b.peer.name))
            });
        }
        Selection::Random => {
            let round = (job.rounds_done + 1).to_le_bytes();
            SeededRng::new("cohort", job.spec.seed, &[&round]).shuffle(eligible);
        }
    }
}

#[cfg(test)]
mod tests;
