//! dfs-proto
