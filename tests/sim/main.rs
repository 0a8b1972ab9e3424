//! Whole clusters of the real programs on a simulated kernel: clock, network and disks are made here, from one seed.
//!
//! Masters, chunkservers, commands and clients are the programs that users run, as processes whose every system call is
//! answered by [`kernel`]: one thread of all runs at a time, chosen by the seed, time passes only there, packets and disks
//! do what [`faults`] wants. What clients were told, [`oracle`] compares with what they find. After the trouble all must
//! become whole. `sim --help` says how a seed is tried again.

#![expect(clippy::print_stdout, reason = "clients are heard by it, and people read it")]

mod calls;
mod canaries;
mod client;
mod disk;
mod faults;
mod kernel;
mod lookout;
mod native;
mod net;
mod oracle;
mod peek;
mod runs;
mod vdso;
mod world;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "client") {
        client::run(&args[1..]);
        return;
    }
    std::process::exit(runs::main(&args));
}
