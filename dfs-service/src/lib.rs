//! dfs-service
