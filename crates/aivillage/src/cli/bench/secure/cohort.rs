//! A whole round in one process: many participants, one coordinator, and meters for the CPU time of each side.
//!
//! Each step is taken by all participants, on several threads, before the next. An input is made, masked, checked and added
//! to the sum before its thread makes the next one, so that memory holds as many inputs as there are threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::rng::SeededRng;
use aivillage_base::wire::secure::{Advert, Agreed, Agreement, MaskedInput, Opening, RegistryHead, Revealed, Shares};
use aivillage_base::{Digest, NodeName};
use aivillage_privacy::secagg::coordinator;
use aivillage_privacy::secagg::draw;
use aivillage_privacy::secagg::mask;
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::ring::{self, Width};
use aivillage_privacy::secagg::roster::{Listed, Roster};
use aivillage_privacy::secagg::signed::{Context, KeyInMemory, Signer as _, input_is_signed};
use aivillage_training::participant::secure::SystemRandom;
use serde::Serialize;

use super::{Figures, SecureArgs};
use crate::exit::{CliError, ExitCode};

/// Values that are masked at once: 128 KiB, a multiple of [`mask::UNIT`].
const BLOCK: usize = 16 * 1024;
/// Magnitude of values, where the ring holds so large a sum.
const BOUND: u64 = 1 << 20;

/// CPU time of work that is done on many threads.
#[derive(Default)]
struct Meter(AtomicU64);

impl Meter {
    /// Does the work, and counts the CPU time that this thread spends on it.
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = cpu_ns();
        let done = work();
        self.0.fetch_add(cpu_ns() - before, Ordering::Relaxed);
        done
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure with a few digits")]
    fn seconds(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e9
    }
}

/// CPU time of this thread, user and system.
fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let parts = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    let (Ok(seconds), Ok(ns)) = parts else { return 0 };
    seconds * 1_000_000_000 + ns
}

#[derive(Default)]
struct Meters {
    participants: Meter,
    /// Part of `participants`.
    masks: Meter,
    coordinator: Meter,
    /// Part of `coordinator`.
    unmask: Meter,
}

struct Member {
    machine: Participant,
    signer: KeyInMemory,
    stays: bool,
    sent_bytes: u64,
}

/// The masked sum, and what it has to be.
struct Sums {
    masked: Vec<i64>,
    plain: Vec<i64>,
}

/// A round that has begun.
pub(super) struct Cohort {
    members: Vec<Member>,
    threads: usize,
    reveals: Vec<Revealed>,
    roster: Roster,
    width: Width,
    /// Largest magnitude of a value.
    bound: u64,
    run: u64,
    meters: Meters,
    sums: Mutex<Sums>,
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, format!("{what}: {why}"))
}

/// Bytes of a message on the link.
fn bytes_of(message: &impl Serialize) -> u64 {
    serde_json::to_vec(message).map_or(0, |text| text.len() as u64)
}

/// `work` for every member on several threads; results in the order of the members.
fn each<T: Send>(
    members: &mut [Member],
    threads: usize,
    work: impl Fn(usize, &mut Member) -> Result<T, CliError> + Sync,
) -> Result<Vec<T>, CliError> {
    let size = members.len().div_ceil(threads).max(1);
    let work = &work;
    std::thread::scope(|scope| {
        let one = |(thread, part): (usize, &mut [Member])| {
            part.iter_mut()
                .enumerate()
                .map(|(i, member)| work(thread * size + i, member))
                .collect::<Result<Vec<T>, _>>()
        };
        let running: Vec<_> = members.chunks_mut(size).enumerate().map(|part| scope.spawn(move || one(part))).collect();
        let mut all = Vec::new();
        for thread in running {
            let done = thread.join().unwrap_or_else(|_| Err(CliError::new(ExitCode::Bug, "a thread died")));
            all.append(&mut done?);
        }
        Ok(all)
    })
}

/// Step 0, second half: all are shown everybody's keys and, where the graph is drawn, reveal their nonces.
fn revealed(
    members: &mut [Member],
    threads: usize,
    meters: &Meters,
    listed: &Listed,
    adverts: &Arc<[Advert]>,
) -> Result<Vec<Revealed>, CliError> {
    let reveals = each(members, threads, |i, member| {
        let Member { machine, signer, sent_bytes, .. } = member;
        // One copy for all: a thousand rosters of a thousand would fill the memory that is measured. Everybody is who they
        // say: enrolment is not measured.
        let adverts = Arc::clone(adverts);
        let reveal = meters.participants.time(|| machine.roster(adverts, &|_| Ok(()), signer));
        let Some(reveal) = reveal.map_err(|alarm| failed("the roster", &alarm))? else { return Ok(None) };
        *sent_bytes += bytes_of(&reveal);
        let name = listed.adverts()[i].peer.name.clone();
        let revealed = Revealed { name, nonce: reveal.nonce, signature: reveal.signature };
        let checked = meters.coordinator.time(|| draw::check(listed, i, &revealed));
        checked.map_err(|why| failed("a nonce", &why))?;
        Ok(Some(revealed))
    })?;
    Ok(reveals.into_iter().flatten().collect())
}

impl Cohort {
    /// Step 0: everybody's keys.
    pub(super) fn new(args: &SecureArgs, width: Width, run: u64) -> Result<Self, CliError> {
        let (terms, meters) = (args.terms(), Meters::default());
        let ctx = Context(Digest::of(&run.to_le_bytes()).0);
        let count = args.participants;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number up to `count`")]
        let left = |until: u32| (args.dropout * f64::from(until) + 1e-9).floor() as u32;
        let begin = |i: u32| {
            let name = NodeName::new(format!("node-{i:05}")).map_err(|e| failed("a name", &e))?;
            let signer = KeyInMemory::new(&Digest::of(name.as_str().as_bytes()).0);
            let machine = meters
                .participants
                .time(|| Participant::begin(ctx, terms, name, RegistryHead::default(), &signer, &mut SystemRandom));
            let sent_bytes = bytes_of(machine.advert());
            // Those that leave are spread over all.
            Ok(Member { machine, signer, stays: left(i + 1) == left(i), sent_bytes })
        };
        let mut members = (0..count).map(begin).collect::<Result<Vec<_>, CliError>>()?;
        let adverts: Arc<[Advert]> = members.iter().map(|member| member.machine.advert().clone()).collect();
        let listed = meters.coordinator.time(|| Listed::new(ctx, &terms, Arc::clone(&adverts)));
        let listed = listed.map_err(|alarm| CliError::new(ExitCode::Usage, alarm.to_string()))?;
        let reveals = revealed(&mut members, args.threads(), &meters, &listed, &adverts)?;
        let roster = meters.coordinator.time(|| listed.draw(&reveals)).map_err(|alarm| failed("the graph", &alarm))?;
        let most = (1u64 << (width.bits() - 1)) - 1;
        let params = args.params as usize;
        let sums = Mutex::new(Sums { masked: vec![0; params], plain: vec![0; params] });
        let bound = (most / u64::from(count)).min(BOUND);
        Ok(Self { members, threads: args.threads(), reveals, roster, width, bound, run, meters, sums })
    }

    /// The whole round.
    pub(super) fn run(mut self) -> Result<Figures, CliError> {
        let shares = self.share()?;
        let sharers: Vec<NodeName> = shares.keys().cloned().collect();
        self.send(&shares, &sharers)?;
        let survivors = self.survivors();
        let agreed = self.agree(&survivors)?;
        let openings = self.open(&sharers, &survivors, &agreed)?;
        self.unmask(&shares, &sharers, &survivors, &openings)?;
        let plan = self.roster.plan();
        let seconds = |meter: &Meter| meter.seconds();
        Ok(Figures {
            cpu_s_participants: seconds(&self.meters.participants),
            cpu_s_coordinator: seconds(&self.meters.coordinator),
            cpu_s_masks: seconds(&self.meters.masks),
            cpu_s_unmask: seconds(&self.meters.unmask),
            wall_ms: 0.0,
            survivors: u32::try_from(survivors.len()).unwrap_or(u32::MAX),
            threshold: plan.threshold,
            neighbours: plan.neighbours,
            upload_bytes: self.members.iter().filter(|member| member.stays).map(|member| member.sent_bytes).sum(),
        })
    }

    fn name(&self, i: usize) -> &NodeName {
        &self.roster.adverts()[i].peer.name
    }

    fn survivors(&self) -> Vec<NodeName> {
        let stay = self.members.iter().enumerate().filter(|(_, member)| member.stays);
        stay.map(|(i, _)| self.name(i).clone()).collect()
    }

    /// Step 1: shares of everybody's secrets for the neighbours.
    fn share(&mut self) -> Result<BTreeMap<NodeName, Shares>, CliError> {
        let Self { members, threads, reveals, roster, meters, .. } = self;
        let shares = each(members, *threads, |i, member| {
            let Member { machine, signer, sent_bytes, .. } = member;
            let shares = meters.participants.time(|| machine.reveals(reveals, signer, &mut SystemRandom));
            let shares = shares.map_err(|alarm| failed("the roster", &alarm))?;
            let checked = meters.coordinator.time(|| coordinator::check_shares(roster, i, &shares));
            checked.map_err(|why| failed("shares", &why))?;
            *sent_bytes += bytes_of(&shares);
            Ok((roster.adverts()[i].peer.name.clone(), shares))
        })?;
        Ok(shares.into_iter().collect())
    }

    /// Step 2: whoever stays masks its values; the coordinator adds them up as they come.
    fn send(&mut self, shares: &BTreeMap<NodeName, Shares>, sharers: &[NodeName]) -> Result<(), CliError> {
        let Self { members, threads, roster, meters, width, bound, run, sums, .. } = self;
        let values = sums.get_mut().unwrap_or_else(PoisonError::into_inner).plain.len();
        let sums = &*sums;
        each(members, *threads, |i, member| {
            if !member.stays {
                return Ok(());
            }
            let sent = |name: &NodeName| shares.get(name);
            let boxes = meters.coordinator.time(|| coordinator::boxes_for(roster, sent, i));
            let taken = meters.participants.time(|| member.machine.boxes(sharers, &boxes));
            taken.map_err(|alarm| failed("boxes", &alarm))?;
            let masks = meters.participants.time(|| meters.masks.time(|| member.machine.masks()));
            let masks = masks.map_err(|alarm| failed("masks", &alarm))?;
            let mut rng = SeededRng::new("values of a bench", *run, &[&i.to_le_bytes()]);
            let mut bytes = vec![0; values * width.bytes()];
            for (block, bytes) in bytes.chunks_mut(BLOCK * width.bytes()).enumerate() {
                let start = block * BLOCK;
                let mut words: Vec<i64> =
                    (0..bytes.len() / width.bytes()).map(|_| small(rng.next_u64(), *bound)).collect();
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                sums.plain[start..].iter_mut().zip(&words).for_each(|(sum, word)| *sum += word);
                drop(sums);
                meters.participants.time(|| {
                    meters.masks.time(|| {
                        mask::apply(&masks, *width, start as u64, &mut words);
                        ring::pack(&words, *width, bytes);
                    });
                });
            }
            let digest = || Digest::of(&bytes).0;
            let input = meters.participants.time(|| member.machine.input(digest(), &member.signer));
            let input = input.map_err(|alarm| failed("the input", &alarm))?;
            member.sent_bytes += bytes.len() as u64 + bytes_of(&input);
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            let signed = meters.coordinator.time(|| {
                ring::unpack_add(&bytes, *width, &mut sums.masked);
                let (id, ctx) = (member.signer.id(), roster.context());
                matches!(&input, MaskedInput::Roster { roster, signature }
                    if input_is_signed(&id, ctx, roster, &digest(), signature))
            });
            if signed { Ok(()) } else { Err(failed("an input", &"its signature does not fit")) }
        })?;
        Ok(())
    }

    /// Step 3: the survivors vouch for each other; by place.
    fn agree(&mut self, survivors: &[NodeName]) -> Result<Vec<Option<Agreed>>, CliError> {
        let Self { members, threads, roster, meters, .. } = self;
        each(members, *threads, |i, member| {
            if !member.stays {
                return Ok(None);
            }
            let agreement = meters.participants.time(|| member.machine.survivors(survivors, &member.signer));
            let agreement: Agreement = agreement.map_err(|alarm| failed("survivors", &alarm))?;
            let checked = meters.coordinator.time(|| coordinator::check_agreement(roster, survivors, i, &agreement));
            checked.map_err(|why| failed("an agreement", &why))?;
            member.sent_bytes += bytes_of(&agreement);
            Ok(Some(Agreed { name: roster.adverts()[i].peer.name.clone(), signature: agreement.signature }))
        })
    }

    /// Step 4: shares that open the sum.
    fn open(
        &mut self,
        sharers: &[NodeName],
        survivors: &[NodeName],
        agreed: &[Option<Agreed>],
    ) -> Result<BTreeMap<NodeName, Opening>, CliError> {
        let Self { members, threads, roster, meters, .. } = self;
        let openings = each(members, *threads, |i, member| {
            if !member.stays {
                return Ok(None);
            }
            // The words that count: of those who hold shares of its secrets.
            let words = || roster.holders(i).into_iter().filter_map(|holder| agreed[holder].clone()).collect();
            let words: Vec<Agreed> = meters.coordinator.time(words);
            let opening = meters.participants.time(|| member.machine.agreements(&words, &member.signer));
            let opening: Opening = opening.map_err(|alarm| failed("agreements", &alarm))?;
            let check = || coordinator::check_opening(roster, sharers, survivors, i, &opening);
            meters.coordinator.time(check).map_err(|why| failed("an opening", &why))?;
            member.sent_bytes += bytes_of(&opening);
            Ok(Some((roster.adverts()[i].peer.name.clone(), opening)))
        })?;
        Ok(openings.into_iter().flatten().collect())
    }

    /// Takes the masks that are left away, and compares.
    fn unmask(
        &mut self,
        shares: &BTreeMap<NodeName, Shares>,
        sharers: &[NodeName],
        survivors: &[NodeName],
        openings: &BTreeMap<NodeName, Opening>,
    ) -> Result<(), CliError> {
        let Self { roster, meters, width, sums, .. } = self;
        let Sums { masked, plain } = sums.get_mut().unwrap_or_else(PoisonError::into_inner);
        let commitments = shares.iter().map(|(name, shares)| (name.clone(), shares.commitment.0)).collect();
        let unmasked = meters.coordinator.time(|| {
            meters.unmask.time(|| {
                let unmasking = coordinator::unmask(roster, sharers, survivors, &commitments, openings)?;
                mask::apply(&unmasking.masks, *width, 0, masked);
                ring::centre_all(masked, *width);
                Ok::<_, coordinator::Unopened>(())
            })
        });
        unmasked.map_err(|e| failed("the sum", &e))?;
        if masked == plain { Ok(()) } else { Err(CliError::new(ExitCode::Bug, "the sum is not that of the values")) }
    }
}

/// A number from -`bound` to `bound`, of 64 random bits.
fn small(bits: u64, bound: u64) -> i64 {
    (bits % (2 * bound + 1)).cast_signed() - bound.cast_signed()
}
