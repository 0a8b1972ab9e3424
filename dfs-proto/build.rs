//! Compiles `proto/*.proto` without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "proto/control.proto",
            "proto/servers.proto",
            "proto/jobs.proto",
            "proto/trash.proto",
            "proto/copies.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
