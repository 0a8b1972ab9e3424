//! Runs. What any process here needs and that knows no file-system type: connections, logging, shutdown, clocks.

pub mod clock;
pub mod conn;
pub mod log;
pub mod shutdown;
