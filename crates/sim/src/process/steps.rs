//! From what waits to what is done: step together, persist, answer, act.

use std::sync::Arc;

use aivillage_training::step::Made;
use aivillage_training::view::EventKind;

use super::*;

impl Process {
    /// Steps everything that waits, job by job.
    pub(crate) fn wake(&mut self, world: &mut World) -> Result<(), Halt> {
        let waiting: Vec<Work> = self.inbox.drain(..).collect();
        let ids: Vec<JobId> = self.owned.keys().cloned().collect();
        let mut taken = BTreeSet::new();
        for id in &ids {
            let now = self.now(world);
            let mut all = Step::default();
            let mut answers = Vec::new();
            let mut unused = Vec::new();
            let Some(owned) = self.owned.get_mut(id) else { continue };
            for (i, work) in waiting.iter().enumerate() {
                match work {
                    Work::Everyone(input) => merge(&mut all, owned.job.step(now, input.clone())),
                    Work::Job(job, input) if job == id => merge(&mut all, owned.job.step(now, input.clone())),
                    Work::Update(to, peer, header, payload) if header.key.job == *id => {
                        taken.insert(i);
                        let input = Input::Update(peer.clone(), header.clone(), payload.clone());
                        let mut step = owned.job.step(now, input);
                        answers.extend(step.reply.take().map(|said| (*to, Reply::Update(said))));
                        if step.kept {
                            owned.arrived.push(peer.name.clone());
                        }
                        if let (Payload::Stored(blob), false) = (payload, step.kept) {
                            unused.push(blob.digest);
                        }
                        merge(&mut all, step);
                    }
                    Work::Job(..) | Work::Update(..) => {}
                }
            }
            self.settle(world, id, all, answers)?;
            for digest in unused {
                self.drop_payload(world, digest);
            }
        }
        for (i, work) in waiting.iter().enumerate() {
            if let Work::Update(to, ..) = work
                && !taken.contains(&i)
            {
                world.reply(self.index, *to, Reply::Update(UpdateReply::Retry { after_ms: 500 }));
            }
        }
        Ok(())
    }

    /// Persists, answers, acts.
    pub(super) fn settle(
        &mut self,
        world: &mut World,
        id: &JobId,
        step: Step,
        answers: Vec<(Asker, Reply)>,
    ) -> Result<(), Halt> {
        let order = world.conduct.order();
        let mut answers = Some(answers);
        if order == Order::SpeakFirst {
            self.tell(world, answers.take());
        }
        let mut effects = step.effects;
        if order == Order::ActFirst {
            for effect in std::mem::take(&mut effects) {
                self.carry_out(world, id, effect)?;
            }
        }
        if !step.changes.is_empty() && !self.persist(world, id, step.changes)? {
            return Ok(());
        }
        self.tell(world, answers);
        for effect in effects {
            self.carry_out(world, id, effect)?;
        }
        if self.owned.get(id).is_some_and(|o| o.job.status().is_terminal()) {
            self.owned.remove(id);
            let name = self.name();
            ready(world.records.release(&store::lease(id), &name)).expect("invariant: memory leases can be released");
        }
        Ok(())
    }

    fn tell(&self, world: &mut World, answers: Option<Vec<(Asker, Reply)>>) {
        for (to, reply) in answers.into_iter().flatten() {
            world.reply(self.index, to, reply);
        }
    }

    /// False if the tenure is over: nothing of the step may be said or done.
    fn persist(&mut self, world: &mut World, id: &JobId, changes: Vec<Change>) -> Result<bool, Halt> {
        let wall = self.now(world).wall_ms;
        let Some(owned) = self.owned.get(id) else { return Ok(false) };
        let epoch = owned.epoch;
        if world.conduct.leases_by_clock() && wall >= owned.renewed_wall_ms + millis(LEASE) {
            self.owned.remove(id);
            return Ok(false);
        }
        let fence = world.conduct.fence(Fence { lease: store::lease(id), epoch });
        let batch = store::batch(changes, fence);
        let name = batch.name;
        world.perhaps_die(FaultKind::CrashBeforePersist, name)?;
        match ready(world.records.commit(batch)) {
            Ok(()) => {}
            Err(StoreError::Fenced { .. }) => {
                world.net.tally.count(FaultKind::Fenced);
                self.owned.remove(id);
                return Ok(false);
            }
            Err(error) => panic!("invariant: a memory store has no other faults than {error}"),
        }
        world.witness.committed(&world.records, &world.blobs, id, epoch)?;
        world.perhaps_die(FaultKind::CrashAfterPersist, name)?;
        Ok(true)
    }

    fn carry_out(&mut self, world: &mut World, id: &JobId, effect: Effect) -> Result<(), Halt> {
        match effect {
            Effect::Send(peer, message) => self.send(world, &peer, message),
            Effect::Initialise(architecture) => {
                let Some(owned) = self.owned.get(id) else { return Ok(()) };
                let values = world.plan.initialiser.initial_values(&architecture, owned.job.record().spec.seed);
                let bytes = bundle::write(&architecture, &values).expect("invariant: recruited shapes hold together");
                let blob = ready(put_blob(&world.blobs, bytes.into())).expect("invariant: memory is not full");
                self.later(world, 40, id, Input::Initialised(architecture, blob));
            }
            Effect::Compute(plan) => {
                let plan = world.conduct.compute(*plan);
                let arrived = self.owned.get(id).map(|o| o.arrived.clone()).unwrap_or_default();
                match world.conduct.make(&plan, &arrived, &world.records, &world.blobs) {
                    Err(ComputeError::Store(_)) => self.later(world, 1_000, id, Input::Retry),
                    result => self.later(world, 120, id, Input::Computed(plan.key, result)),
                }
            }
            Effect::Publish(model) => {
                let mut batch = Batch::new("model_published");
                batch.put("sim_catalogue", model.job_id.as_str(), &model.model);
                commit(world, batch)?.expect("invariant: this batch has no precondition");
                self.later(world, 40, id, Input::Published(Ok(model.job_id.to_string())));
            }
            Effect::DeleteBlobs(digests) => {
                for digest in digests {
                    self.drop_payload(world, digest);
                }
            }
            Effect::Model(made) => self.model_made(world, id, made),
            Effect::Event(EventKind::RoundOpened { .. }) => {
                if let Some(owned) = self.owned.get_mut(id) {
                    owned.arrived.clear();
                }
            }
            Effect::Event(_) => {}
        }
        Ok(())
    }

    /// Lets old models and states of the job go, by the coordinator's own rule.
    fn model_made(&mut self, world: &World, id: &JobId, made: Made) {
        let Some(owned) = self.owned.get_mut(id) else { return };
        let needed = owned.job.needed();
        let mut gone: BTreeSet<Digest> = owned.kept.add(made, &needed).into_iter().collect();
        for other in ready(store::jobs(&world.records)).unwrap_or_default() {
            let other = other.spec.job_id;
            if other != *id
                && let Ok(Some(saved)) = ready(store::saved(&world.records, &other))
            {
                gone = gone.difference(&Kept::of(&saved).digests()).copied().collect();
            }
        }
        for digest in gone {
            ready(world.blobs.delete(&digest)).expect("invariant: memory blobs can be deleted");
        }
    }

    fn later(&self, world: &mut World, ms_max: u64, job: &JobId, input: Input) {
        let (process, life) = (self.index, self.life);
        world.soon(1, ms_max, AtProcess::Made { process, life, job: job.clone(), input: Box::new(input) });
    }

    fn send(&self, world: &mut World, peer: &Peer, message: Down) {
        if let Some(node) = self.peers.iter().position(|p| p == peer) {
            let stream = self.streams.get(&node).copied();
            let message = Arc::clone(&world.conduct).tells(peer, node, message);
            world.send_down(self.index, stream, node, message);
        }
    }
}
