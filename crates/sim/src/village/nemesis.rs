//! What happens to a village: births, deaths, cut wires, and clients who do not give up.

use super::*;

/// Shortest and longest time a dead coordinator stays dead, in milliseconds.
const DEAD_MS: (u64, u64) = (100, 3_000);
/// Longest jump of a wall clock, in milliseconds.
const JUMP_MS_MAX: u64 = 60_000;
/// Silence after which either side takes a stream for broken, in milliseconds.
const HEARTBEAT_MS: u64 = 2_000;

impl Village {
    /// Everybody starts, clients come.
    pub(super) fn plan_life(&mut self) {
        let world = &mut self.world;
        for process in 0..self.processes.len() {
            world.soon(0, 200, Fate::Start { process });
        }
        for node in 0..self.nodes.len() {
            world.soon(0, 500, Fate::Boot { node });
        }
        for job in 0..self.jobs.len() {
            world.soon(0, 3_000, Client::Create { job });
        }
        for request in 0..self.requests.len() {
            world.soon(500, 12_000, Client::Submit { request });
        }
        if world.plan.cancel_last {
            let job = self.jobs.len() - 1;
            world.soon(1_000, 8_000, Client::Cancel { job });
        }
    }

    pub(super) fn plan_faults(&mut self) {
        let world = &mut self.world;
        let faults = world.plan.faults.clone();
        // The thick of it is early, while there is work.
        let last = faults.until_ms / 2;
        for _ in 0..faults.node_crashes {
            let node = world.net.between(0, self.nodes.len() as u64 - 1);
            world.soon(500, last, Fate::Kill { node: index(node) });
        }
        for _ in 0..faults.partitions {
            let (low, high) = (world.net.between(0, self.nodes.len() as u64 - 1), self.nodes.len() as u64 - 1);
            let nodes: Vec<usize> = (index(low)..=index(world.net.between(low, high))).collect();
            let (from, length) = (world.net.between(500, last), world.net.between(300, 6_000));
            world.queue.plan(from, Fate::Cut { nodes: nodes.clone(), off: true });
            world.queue.plan(from + length, Fate::Cut { nodes, off: false });
        }
        for _ in 0..faults.freezes {
            let process = index(world.net.between(0, self.processes.len() as u64 - 1));
            let ms = world.net.between(3_000, 9_000);
            world.soon(500, last, Fate::Freeze { process, ms });
        }
        for _ in 0..faults.clock_jumps {
            let process = index(world.net.between(0, self.processes.len() as u64 - 1));
            let far = i64::try_from(world.net.between(1_000, JUMP_MS_MAX)).expect("invariant: a minute fits");
            let ms = if world.net.between(0, 1) == 0 { far } else { -far };
            world.soon(500, last, Fate::Jump { process, ms });
        }
    }

    /// A coordinator is dead; its nodes find out.
    pub(super) fn kill_process(&mut self, index: usize) {
        self.processes[index].die();
        for node in &self.nodes {
            if let Some(stream) = node.streams[index] {
                self.world.soon(20, 800, Wire::Hung { node: node.index, process: index, stream });
            }
        }
        self.world.soon(DEAD_MS.0, DEAD_MS.1, Fate::Start { process: index });
    }

    pub(super) fn fate(&mut self, event: Fate) -> Result<(), Breach> {
        let calm = self.world.now() >= self.world.plan.faults.until_ms;
        match event {
            Fate::Start { process } => {
                let result = self.processes[process].start(&mut self.world);
                return self.lives(process, result);
            }
            Fate::Boot { node } => self.nodes[node].boot(&mut self.world),
            Fate::Freeze { process, ms } if !calm && self.processes[process].up => {
                self.world.net.tally.count(FaultKind::Freeze);
                self.processes[process].frozen_until = self.world.now() + ms;
            }
            Fate::Jump { process, ms } if !calm => {
                self.world.net.tally.count(FaultKind::ClockJump);
                self.world.skews[process] += ms;
            }
            Fate::Kill { node } if !calm && self.nodes[node].up => {
                self.world.net.tally.count(FaultKind::NodeCrash);
                for (process, stream) in self.nodes[node].streams.clone().into_iter().enumerate() {
                    if let Some(stream) = stream {
                        self.world.soon(20, 800, Wire::Broken { process, node, stream });
                    }
                }
                self.nodes[node].die();
                self.world.soon(50, 4_000, Fate::Boot { node });
            }
            Fate::Cut { nodes, off } => self.cut(&nodes, off),
            Fate::Freeze { .. } | Fate::Kill { .. } | Fate::Jump { .. } => {}
        }
        Ok(())
    }

    fn cut(&mut self, nodes: &[usize], off: bool) {
        if off {
            self.world.net.tally.count(FaultKind::Partition);
        }
        for node in nodes {
            self.world.net.cut[*node] = off;
            let streams = self.nodes[*node].streams.clone();
            for (process, stream) in streams.into_iter().enumerate().filter(|_| off) {
                let Some(stream) = stream else { continue };
                let (node, late) = (*node, HEARTBEAT_MS + 500);
                self.world.soon(HEARTBEAT_MS, late, Wire::Hung { node, process, stream });
                self.world.soon(HEARTBEAT_MS, late, Wire::Broken { process, node, stream });
            }
        }
    }

    pub(super) fn at_wire(&mut self, event: Wire) -> Result<(), Breach> {
        let world = &mut self.world;
        match event {
            Wire::Dial { node, life, process } => {
                let (n, p) = (&mut self.nodes[node], &mut self.processes[process]);
                if !n.up || n.life != life || n.streams[process].is_some() {
                    return Ok(());
                }
                if !p.up || world.now() < p.frozen_until || world.net.cut[node] {
                    world.soon(100, 800, Wire::Dial { node, life, process });
                    return Ok(());
                }
                let stream = world.next_stream();
                n.streams[process] = Some(stream);
                let result = p.joined(world, node, stream);
                self.lives(process, result)
            }
            Wire::Hung { node, process, stream } => {
                let (n, p) = (&mut self.nodes[node], &self.processes[process]);
                // A partition that healed in time broke nothing.
                let well = p.up && !world.net.cut[node] && p.streams.get(&node) == Some(&stream);
                if n.up && n.streams[process] == Some(stream) && !well {
                    n.streams[process] = None;
                    world.soon(20, 500, Wire::Dial { node, life: n.life, process });
                }
                Ok(())
            }
            Wire::Broken { process, node, stream } => {
                let (n, p) = (&self.nodes[node], &mut self.processes[process]);
                let well = n.up && !world.net.cut[node] && n.streams[process] == Some(stream);
                if !p.up || well {
                    return Ok(());
                }
                if world.now() < p.frozen_until {
                    let at = p.frozen_until;
                    world.queue.plan(at, Wire::Broken { process, node, stream });
                    return Ok(());
                }
                if n.streams[process] == Some(stream) {
                    // The other side will see nothing but silence.
                    world.soon(0, HEARTBEAT_MS, Wire::Hung { node, process, stream });
                }
                let result = p.left(world, node, stream);
                self.lives(process, result)
            }
        }
    }

    pub(super) fn at_client(&mut self, event: Client) -> Result<(), Breach> {
        let again = event.clone();
        let up = |p: &Process, world: &World| p.up && world.now() >= p.frozen_until;
        match event {
            Client::Create { job } => {
                let Some(index) = (0..self.processes.len()).find(|i| up(&self.processes[*i], &self.world)) else {
                    self.world.soon(200, 1_000, again);
                    return Ok(());
                };
                let record = creation(&self.jobs[job], self.processes[index].now(&self.world).wall_ms);
                let result = self.processes[index].create(&mut self.world, &record);
                if matches!(result, Err(Halt::Died)) {
                    // The answer never came: the client asks again, under the same id.
                    self.world.soon(200, 1_000, again);
                }
                self.lives(index, result)
            }
            Client::Submit { request } => {
                let taken = self.requests.iter().position(|s| s.id == RequestId::from_bits(request as u128 + 1));
                let Some(taken) = taken else { return Ok(()) };
                if !up(&self.processes[0], &self.world) {
                    self.world.soon(100, 600, again);
                    return Ok(());
                }
                let submission = self.requests.swap_remove(taken);
                let submit = |s: &mut serving::Serving, w: &mut World, now| s.submit(w, now, submission);
                let result = self.processes[0].serve(&mut self.world, submit);
                self.lives(0, result)
            }
            Client::Cancel { job } => {
                let id = self.jobs[job].job_id.clone();
                let ended = self.records().iter().any(|r| r.spec.job_id == id && r.life.status().is_terminal());
                if !ended {
                    for process in &mut self.processes {
                        if up(process, &self.world) {
                            process.cancel(&mut self.world, &id);
                        }
                    }
                    self.world.soon(500, 1_500, again);
                }
                Ok(())
            }
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("invariant: villages are small")
}

fn creation(spec: &JobSpec, wall_ms: u64) -> JobRecord {
    JobRecord::new(spec.clone(), wall_ms)
}
