//! The rules: which steps a state allows and what each step does. Every weakened variant is one `if` here.
//!
//! Order of one step: the action itself, then `settle`, which lets clients see at once all they may see
//! (the checks are then as strict as they can be) and forgets what can no longer matter.

use stateright::{Model, Property};

use crate::mutants::Mutant;
use crate::properties;
use crate::scenarios::Bounds;
use crate::state::{
    Config, Log, NOTHING_LOST, OPS, Phase, Report, SERVER_IDS, SERVERS, Server, State, TORN,
    VERSIONS, flag,
};

/// The chunk protocol within `bounds`, with at most one rule broken.
#[derive(Clone, Debug)]
pub(crate) struct ChunkModel {
    pub(crate) bounds: Bounds,
    pub(crate) mutant: Option<Mutant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The primary of `version` gives `op` the next sequence number and sends it to all members, itself included.
    Sequence { version: u8, op: u8 },
    /// A member puts the next operation of `version` into its memory and acknowledges it.
    Apply { server: usize, version: u8 },
    /// A member's fdatasync: all it has is on its disk, and the primary is told.
    Sync { server: usize },
    /// A member hears from the primary that all its operations are stable on every member.
    ClearDirty { server: usize },
    /// SIGKILL and start on the same boot.
    Restart { server: usize },
    /// Power loss and start.
    Reboot { server: usize },
    /// The server comes back with an empty disk.
    LoseDisk { server: usize },
    /// The master logs `Reconfigure` with these members under the next unused version.
    Reconfigure { members: u8 },
    /// A member promises `version` durably and reports; again = a repeated `Promise`, a fresh report.
    Promise { server: usize, version: u8 },
    /// The master chooses the source and sends `Adopt`; `forced` = the wait of DECISIONS 1 is over.
    SendAdopt { source: usize, forced: bool },
    /// A member copies what `Adopt` names from the source, syncs it and answers.
    Adopt { server: usize, version: u8 },
    /// The master logs `Activate`, the primary begins to serve.
    Activate { primary: usize },
    /// Only in `Mutant::ResumeInSameVersion`.
    Resume { version: u8 },
    /// Only in `Mutant::ClearsOwnMark`.
    ClearOwnMark { server: usize },
    /// Only in `Mutant::ServesBeforeActivate`.
    LeadEarly { server: usize },
}

impl ChunkModel {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The length that counts as done by all of `config`, given what each member reported.
    fn done_by_all(&self, config: &Config, reported: &[u8; SERVERS]) -> u8 {
        let mut lens = [u8::MAX; SERVERS];
        for server in 0..SERVERS {
            if config.has(server) {
                lens[server] = reported[server];
            }
        }
        lens.sort_unstable();
        let members = config.members.count_ones() as usize;
        let missing = if self.is(Mutant::AckOnMajority) { members - (members / 2 + 1) } else { 0 };
        lens[missing]
    }

    /// Whether a client that asks this member for the chunk gets its bytes: its own version, no higher
    /// promise, and no operation under the answer that is not known to be acknowledged.
    pub(crate) fn serves_reads(&self, state: &State, server: usize) -> bool {
        let replica = &state.servers[server];
        if replica.version == 0 || replica.promise != replica.version || replica.not_current {
            return false;
        }
        let config = state.config(replica.version);
        if config.phase != Phase::Activated || replica.version < state.forced {
            return false;
        }
        let known = config.leads && replica.log.len() <= self.done_by_all(config, &config.acked);
        known || !replica.dirty
    }

    fn push_writes(&self, state: &State, actions: &mut Vec<Action>) {
        for version in 1..=state.attempt {
            let config = state.config(version);
            if config.leads {
                let newest = (state.submitted + 1).min(self.bounds.ops);
                for op in 1..=newest {
                    let fresh = !config.sent.contains(op) || self.is(Mutant::NoDedup);
                    if fresh && config.sent.len() < Log::CAPACITY {
                        actions.push(Action::Sequence { version, op });
                    }
                }
            }
            if self.is(Mutant::ResumeInSameVersion)
                && config.phase == Phase::Activated
                && !config.leads
            {
                let primary = &state.servers[usize::from(config.primary)];
                if primary.version == version && primary.promise == version && !primary.not_current
                {
                    actions.push(Action::Resume { version });
                }
            }
            for (server, replica) in state.servers.iter().enumerate() {
                let accepted = if self.is(Mutant::AcceptsOlderVersion) {
                    version <= replica.version
                } else {
                    version == replica.version && version == replica.promise
                };
                let room = replica.log.len() < config.sent.len();
                if accepted && room && config.has(server) && !replica.not_current {
                    actions.push(Action::Apply { server, version });
                }
            }
        }
    }

    fn push_server_steps(&self, state: &State, actions: &mut Vec<Action>) {
        for (server, replica) in state.servers.iter().enumerate() {
            let len = replica.log.len();
            if replica.synced < len && !replica.not_current {
                actions.push(Action::Sync { server });
            }
            if replica.dirty && !replica.not_current && replica.promise == replica.version {
                let config = state.config(replica.version);
                if config.leads && len == self.done_by_all(config, &config.stable) {
                    actions.push(Action::ClearDirty { server });
                }
            }
            let leads = state.leading(server).is_some();
            let forgets = self.is(Mutant::PromiseLost)
                && replica.version < replica.promise
                && replica.version > 0;
            if state.restarts_left > 0 && (leads || forgets) {
                actions.push(Action::Restart { server });
            }
            let marked = replica.dirty && !replica.not_current;
            if state.reboots_left > 0 && (leads || forgets || marked || replica.synced < len) {
                actions.push(Action::Reboot { server });
            }
            if state.disk_losses_left > 0 && replica.version > 0 {
                actions.push(Action::LoseDisk { server });
            }
            if self.is(Mutant::ClearsOwnMark) && replica.not_current {
                actions.push(Action::ClearOwnMark { server });
            }
            for version in replica.promise..=state.attempt {
                if version > 0
                    && state.config(version).has(server)
                    && self.promise_matters(state, server, version)
                {
                    actions.push(Action::Promise { server, version });
                }
            }
            for version in 2..=state.attempt {
                let config = state.config(version);
                if config.phase == Phase::Adopting && config.has(server) {
                    let wanted = replica.promise == version && replica.version < version;
                    let source = &state.servers[usize::from(config.source)];
                    let had =
                        source.log.starts_with(config.named) || self.is(Mutant::CopiesPresentLog);
                    if wanted && had {
                        actions.push(Action::Adopt { server, version });
                    }
                    let adopted = config.adopted >> server & 1 == 1;
                    if self.is(Mutant::ServesBeforeActivate)
                        && adopted
                        && !config.leads
                        && version == state.attempt
                    {
                        actions.push(Action::LeadEarly { server });
                    }
                }
            }
        }
    }

    /// A first `Promise` always does something; a repeated one only if its report differs.
    fn promise_matters(&self, state: &State, server: usize, version: u8) -> bool {
        let replica = &state.servers[server];
        if replica.promise < version {
            return true;
        }
        let wanted = version == state.attempt && state.config(version).phase == Phase::Promising;
        wanted
            && !self.is(Mutant::PromiseLost)
            && state.reports[server] != Some(report_of(state, server))
    }

    fn push_master_steps(&self, state: &State, actions: &mut Vec<Action>) {
        let active = state.config(state.active).members;
        if state.attempt < self.bounds.versions {
            for members in 1..1 << SERVERS {
                let kept = members & active;
                let learners = (members & !active).count_ones();
                let allowed = self.is(Mutant::ForeignMembers) || (kept != 0 && learners <= 1);
                if allowed {
                    actions.push(Action::Reconfigure { members });
                }
            }
        }
        if state.attempt == state.active {
            return;
        }
        let config = state.config(state.attempt);
        let asked = (0..SERVERS).filter(|&server| config.has(server));
        match config.phase {
            Phase::Promising => {
                if asked.clone().all(|server| state.reports[server].is_some()) {
                    self.push_send_adopt(state, config.members, active, actions);
                }
            }
            Phase::Adopting => {
                if config.adopted == config.members && !config.leads {
                    for primary in
                        asked.filter(|&server| state.servers[server].version == state.attempt)
                    {
                        actions.push(Action::Activate { primary });
                    }
                }
            }
            Phase::Unused | Phase::Activated => {}
        }
    }

    /// All promises are in: who may be the source, and is that enough to go on?
    fn push_send_adopt(&self, state: &State, members: u8, active: u8, actions: &mut Vec<Action>) {
        let is_voter = |server: usize, report: &Report| {
            let member = active >> server & 1 == 1 || self.is(Mutant::ForeignMembers);
            // A member of the last activated version that reports a lower one has lost its disk: struck.
            let struck = report.version < state.active
                && !self.is(Mutant::EmptiedDiskVotes)
                && !self.is(Mutant::ForeignMembers);
            members >> server & 1 == 1 && member && !struck
        };
        let of_voters = || {
            (0..SERVERS).filter_map(|server| {
                let report = state.reports[server].filter(|report| is_voter(server, report))?;
                Some((server, report, (report.version, report.log.len())))
            })
        };
        let current = of_voters().any(|(_, report, _)| !report.not_current);
        let all = of_voters().count() == active.count_ones() as usize;
        let waited = state.config(state.attempt).forced;
        let enough = current || all || waited || self.is(Mutant::AnyMemberSuffices);
        if !enough && state.forces_left == 0 {
            return;
        }
        let best = of_voters().map(|(_, _, rank)| rank).max();
        for (source, _, rank) in of_voters() {
            if Some(rank) == best {
                actions.push(Action::SendAdopt { source, forced: !enough });
            }
        }
    }

    fn apply(&self, state: &mut State, server: usize, version: u8) {
        let config = state.config(version);
        let (leads, op) = (config.leads, config.sent.get(state.servers[server].log.len()));
        let replica = &mut state.servers[server];
        if let Some(op) = op {
            replica.log.push(op);
            replica.dirty = true;
        }
        let len = replica.log.len();
        if leads {
            let acked = &mut state.config_mut(version).acked[server];
            *acked = len.max(*acked);
        }
    }

    fn sync(&self, state: &mut State, server: usize) {
        let replica = &mut state.servers[server];
        let len = replica.log.len();
        replica.synced = len;
        if self.is(Mutant::ClearsOnOwnSync) {
            replica.dirty = false;
        }
        let version = replica.version;
        let config = state.config_mut(version);
        if config.leads && config.has(server) {
            config.stable[server] = len.max(config.stable[server]);
        }
    }

    fn restart(&self, state: &mut State, server: usize) {
        if let Some(version) = state.leading(server) {
            stop_leading(state.config_mut(version));
        }
        let replica = &mut state.servers[server];
        if self.is(Mutant::PromiseLost) {
            replica.promise = replica.version;
        }
    }

    fn reboot(&self, state: &mut State, server: usize) {
        self.restart(state, server);
        let replica = &mut state.servers[server];
        let len = replica.log.len();
        if replica.synced < len {
            replica.lost_from = replica.lost_from.min(replica.synced);
            replica.log = replica.log.prefix(replica.synced);
            if self.is(Mutant::CountsUnstable) {
                while replica.log.len() < len {
                    replica.log.push(TORN);
                }
            }
        }
        if self.is(Mutant::DirtyNotDurable) {
            replica.dirty = false;
        }
        replica.not_current = replica.dirty && !self.is(Mutant::DirtyServes);
    }

    fn lose_disk(&self, state: &mut State, server: usize) {
        self.restart(state, server);
        let replica = &mut state.servers[server];
        let lost_from = if replica.log.len() > 0 { 0 } else { replica.lost_from };
        *replica = Server { lost_from, ..Server::default() };
    }

    fn promise(&self, state: &mut State, server: usize, version: u8) {
        if let Some(led) = state.leading(server).filter(|&led| led < version) {
            stop_leading(state.config_mut(led));
        }
        state.servers[server].promise = version;
        let wanted = version == state.attempt && state.config(version).phase == Phase::Promising;
        let stale_kept = self.is(Mutant::PromiseLost) && state.reports[server].is_some();
        if wanted && !stale_kept {
            state.reports[server] = Some(report_of(state, server));
        }
    }

    fn send_adopt(state: &mut State, source: usize, forced: bool) {
        let attempt = state.attempt;
        let named = state.reports[source].map(|report| report.log).unwrap_or_default();
        let config = state.config_mut(attempt);
        config.phase = Phase::Adopting;
        config.source = SERVER_IDS[source];
        config.named = named;
        config.forced |= forced;
        state.forces_left -= u8::from(forced);
        state.reports = [None; SERVERS];
    }

    fn adopt(&self, state: &mut State, server: usize, version: u8) {
        let config = *state.config(version);
        let copied = if self.is(Mutant::CopiesPresentLog) {
            state.servers[usize::from(config.source)].log
        } else {
            config.named
        };
        let replica = &mut state.servers[server];
        let on_disk = replica.log.prefix(replica.synced).common_len(copied);
        replica.synced = if self.is(Mutant::AdoptNotSynced) { on_disk } else { copied.len() };
        replica.log = copied;
        replica.version = version;
        replica.dirty = false;
        replica.not_current = false;
        state.config_mut(version).adopted |= 1 << server;
    }

    fn lead(state: &mut State, version: u8, primary: usize) {
        let base = state.servers[primary].log;
        let config = state.config_mut(version);
        config.primary = SERVER_IDS[primary];
        config.leads = true;
        config.sent = base;
        for server in 0..SERVERS {
            let has_base = config.adopted >> server & 1 == 1;
            config.acked[server] = if has_base { base.len() } else { 0 };
            config.stable[server] = config.acked[server];
        }
    }

    fn activate(&self, state: &mut State, primary: usize) {
        let (old, version) = (state.active, state.attempt);
        Self::lead(state, version, primary);
        let forced = state.config(version).forced;
        let old_members = state.config(old).members;
        let config = state.config_mut(version);
        config.phase = Phase::Activated;
        (config.adopted, config.source, config.named, config.forced) =
            (0, 0, Log::default(), false);
        let members = config.members;
        let learners = (members & !old_members).count_ones();
        if members & old_members == 0 || learners > 1 {
            state.flags |= flag::FOREIGN_MEMBERS;
        }
        // What was observed must be in every member's base, unless all that had it lost it or the wait is over.
        let kept = (0..SERVERS)
            .filter(|&server| {
                members >> server & 1 == 1 && state.servers[server].version == version
            })
            .map(|server| state.servers[server].log.common_len(state.observed))
            .min()
            .unwrap_or(0);
        if kept < state.observed.len() {
            let all_lost = (0..SERVERS)
                .filter(|&server| old_members >> server & 1 == 1)
                .all(|server| state.servers[server].lost_from <= kept);
            if forced || all_lost {
                state.observed = state.observed.prefix(kept);
            } else {
                state.flags |= flag::UNDONE;
            }
        }
        state.active = version;
        for server in &mut state.servers {
            server.lost_from = NOTHING_LOST;
        }
        if forced {
            state.forced = version;
            // The wait is at least `deadAfter`: whoever did not promise has fenced itself by then.
            for older in 1..version {
                stop_leading(state.config_mut(older));
            }
        }
    }

    /// Clients learn all they can, and what can never matter again is reset.
    fn settle(&self, state: &mut State) {
        for version in 1..=state.attempt {
            let config = *state.config(version);
            if config.leads {
                let acknowledged = config.sent.prefix(self.done_by_all(&config, &config.acked));
                observe(state, acknowledged, version);
                let stable = config.sent.prefix(self.done_by_all(&config, &config.stable));
                let freed = if self.is(Mutant::FreedAtAck) { acknowledged } else { stable };
                for op in freed.iter().filter(|&op| op != TORN) {
                    state.freed |= 1 << op;
                }
            }
        }
        for server in 0..SERVERS {
            if self.serves_reads(state, server) {
                let replica = state.servers[server];
                observe(state, replica.log, replica.version);
            }
        }
        if self.is(Mutant::AcceptsOlderVersion) {
            return;
        }
        for version in 1..state.attempt {
            if version != state.active {
                let config = state.config(version);
                let reachable = (0..SERVERS)
                    .any(|server| config.has(server) && state.servers[server].promise <= version);
                if !reachable {
                    *state.config_mut(version) = Config::default();
                }
            }
        }
    }
}

fn report_of(state: &State, server: usize) -> Report {
    let replica = &state.servers[server];
    Report { version: replica.version, log: replica.log, not_current: replica.not_current }
}

fn stop_leading(config: &mut Config) {
    config.leads = false;
    config.acked = [0; SERVERS];
    config.stable = [0; SERVERS];
}

/// A client saw `log`, as bytes read or as acknowledgements, under `version`.
fn observe(state: &mut State, log: Log, version: u8) {
    if state.active < version && !state.config(state.active).sent.starts_with(log) {
        state.flags |= flag::EARLY_ACK;
    }
    if state.observed.starts_with(log) {
        return;
    }
    let lost_already = version < state.active && !state.config(state.active).sent.starts_with(log);
    if log.starts_with(state.observed) && !lost_already {
        state.observed = log;
    } else {
        state.flags |= flag::UNDONE;
    }
}

impl Model for ChunkModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Bounds { ops, versions, reboots, restarts, forces, disk_losses, members } = self.bounds;
        assert!(
            usize::from(ops) <= OPS && usize::from(versions) <= VERSIONS,
            "bounds exceed the arrays"
        );
        let mut state = State::initial(members);
        (state.reboots_left, state.restarts_left, state.forces_left) = (reboots, restarts, forces);
        state.disk_losses_left = disk_losses;
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // The run has failed already; only a variant goes on, to see what else it breaks.
        if state.flags == 0 || self.mutant.is_some() {
            self.push_writes(state, actions);
            self.push_server_steps(state, actions);
            self.push_master_steps(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Sequence { version, op } => {
                state.config_mut(version).sent.push(op);
                if state.submitted < op {
                    state.submitted = op;
                    state.after[usize::from(op) - 1] = state.freed;
                }
            }
            Action::Apply { server, version } => self.apply(&mut state, server, version),
            Action::Sync { server } => self.sync(&mut state, server),
            Action::ClearDirty { server } => state.servers[server].dirty = false,
            Action::Restart { server } => {
                state.restarts_left -= 1;
                self.restart(&mut state, server);
            }
            Action::Reboot { server } => {
                state.reboots_left -= 1;
                self.reboot(&mut state, server);
            }
            Action::LoseDisk { server } => {
                state.disk_losses_left -= 1;
                self.lose_disk(&mut state, server);
            }
            Action::Reconfigure { members } => {
                // A member of an abandoned attempt may have adopted already what the wait allowed, so all later
                // attempts from the same base go on under it too.
                let forced = last.config(last.attempt).forced && !self.is(Mutant::ForgetsTheWait);
                if state.attempt != state.active {
                    let abandoned = state.config_mut(last.attempt);
                    if abandoned.phase == Phase::Promising {
                        *abandoned = Config { members: abandoned.members, ..Config::default() };
                    }
                }
                state.attempt += 1;
                let attempt = state.attempt;
                *state.config_mut(attempt) =
                    Config { phase: Phase::Promising, members, forced, ..Config::default() };
                state.reports = [None; SERVERS];
            }
            Action::Promise { server, version } => self.promise(&mut state, server, version),
            Action::SendAdopt { source, forced } => Self::send_adopt(&mut state, source, forced),
            Action::Adopt { server, version } => self.adopt(&mut state, server, version),
            Action::Activate { primary } => self.activate(&mut state, primary),
            Action::Resume { version } => {
                let primary = usize::from(state.config(version).primary);
                let log = state.servers[primary].log;
                let config = state.config_mut(version);
                (config.leads, config.sent) = (true, log);
                config.acked[primary] = log.len();
                config.stable[primary] = last.servers[primary].synced;
            }
            Action::ClearOwnMark { server } => {
                state.servers[server].not_current = false;
                state.servers[server].dirty = false;
            }
            Action::LeadEarly { server } => Self::lead(&mut state, last.attempt, server),
        }
        for server in 0..SERVERS {
            // An emptied disk is a new identity, which never promised anything.
            let same_disk = !matches!(action, Action::LoseDisk { .. });
            if state.servers[server].promise < last.servers[server].promise && same_disk {
                state.flags |= flag::PROMISE_FELL;
            }
        }
        self.settle(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}
