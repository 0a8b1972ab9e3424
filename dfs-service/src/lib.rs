//! Runs. What any process here needs and that knows no file-system type: connections, logging, metrics,
//! memory, shutdown, clocks.

pub mod canary;
pub mod clock;
pub mod conn;
pub mod data_dir;
pub mod log;
mod lookup;
pub mod memory;
pub mod metrics;
pub mod metrics_http;
pub mod page;
pub mod panics;
pub mod sealed;
pub mod shutdown;
