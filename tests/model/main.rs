//! A model of acknowledgement, reboot and reconfiguration of one chunk, searched exhaustively by stateright.
//!
//! Written from DECISIONS 1, 5 and 16 and PROTOCOL §5.2 and §7.1, not from the chunkserver: where the two
//! differ, one of them is wrong. Run it with `cargo test --release -p tests --test model` (a few minutes; each search
//! prints its states and time). A debug build skips the searches in `holds.rs`, which would take ten
//! times as long there. `DFS_MODEL_FULL=1` adds larger bounds (about five minutes more, 4.2 GiB).
//!
//! | here | in the documents |
//! |---|---|
//! | [`state::Server::version`], `promise`, `log` | adopted version, `PROMISE(g')`, operations in `seq` order |
//! | `Server::synced` | what fdatasync has reached; the rest a reboot takes |
//! | `Server::dirty`, `not_current` | the DIRTY mark; the answer `NOT_CURRENT` |
//! | [`state::Config`] | `K`: members and primary of one version, and every message sent under it |
//! | `Config::sent` | `Write` and `Append` from the primary, with the sequence numbers it gave |
//! | `Config::acked`, `stable` | members' acks at the two levels of DECISIONS 1 |
//! | `State::active`, `attempt` | last *activated* version; the one of the running `Reconfigure` |
//! | [`state::Report`] | answer to `Promise`: adopted version, seq, digest, NOT_CURRENT |
//! | `Config::named`, `source` | what `Adopt` names: the log itself stands for version, seq and digest |
//! | `Config::forced`, `State::forced` | going on after the wait (rebuild delay, at least `deadAfter`) |
//! | `State::freed` | the client was told "stable" and freed the arena slot |
//! | `State::observed` | longest log anybody read or got acknowledged; what I12 protects |
//! | [`protocol::Action`] | one message handled, or one fault; `Restart` = SIGKILL, `Reboot` = power loss |
//!
//! How the network is kept small without losing behaviour: messages are never removed. An operation once sent may
//! reach a member at any later time (late, never, after its primary died); a repeated one has no effect at a
//! member that applies in order. `Promise` and `Adopt` of abandoned attempts may still arrive. Acks, reports and replies
//! are taken in at once: a late one only lets its receiver do the same later or never, and every step may wait
//! for ever. A primary puts operations into its own memory as any member does, so that SIGKILL may find them sent
//! and not kept. Loss of the master's memory is an attempt abandoned for a higher version.
//!
//! Clients are the worst possible: one per operation, all at once, resending for ever, also what they freed
//! (a delayed duplicate); they look at every member all the time. Operations are taken for writes to the same bytes, so a
//! member's log is the value a reader gets, and a shorter log is an older value.
//!
//! Three readings of the documents that the model needs, each with a mutant that breaks without it:
//! a clean member may serve reads without asking its primary (it knows that all it has is stable), so DIRTY also
//! means "ask first" ([`mutants::Mutant::ClearsOnOwnSync`]); what one attempt adopted after the wait stays
//! "after the wait" in the attempts that follow it, until one is activated ([`mutants::Mutant::ForgetsTheWait`]); a
//! member that reports a version below the last activated one is struck from the voters ([`mutants::Mutant::EmptiedDiskVotes`]).
//!
//! Not modelled: time (leases; whoever did not promise before a forced activation counts as fenced, and a read from
//! an older version is not compared with newer ones, DECISIONS 21); truncation, SEAL, PAD and carried appends;
//! offsets within the chunk; per-client counters and the window of the duplicate table; several masters and
//! epochs; flipped bits; placement, and copying ahead to a learner; progress (only that the goals can be reached).

mod holds;
mod mutants;
mod properties;
mod protocol;
mod scenarios;
mod state;
