//! Log lines on standard error, levels by `DFS_LOG` (`info,openraft=warn` unless set).

use tracing_subscriber::EnvFilter;

/// Starts logging for this process; a second call does nothing.
///
/// # Errors
/// If `DFS_LOG` is set and cannot be read as a filter.
pub fn init() -> anyhow::Result<()> {
    use anyhow::Context as _;
    let filter = match std::env::var("DFS_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| {
            format!("read DFS_LOG '{text}' (examples: info, debug, master=debug)")
        })?,
        Err(_) => EnvFilter::new("info,openraft=warn"),
    };
    // Fails only if a subscriber is set already: then that one serves.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
    Ok(())
}
