//! Runs. What any process here needs and that knows no file-system type: connections, logging, metrics,
//! memory, shutdown, clocks.

pub mod clock;
pub mod conn;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod metrics_http;
pub mod shutdown;
