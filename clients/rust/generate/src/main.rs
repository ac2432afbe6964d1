//! Writes the client's stubs from a descriptor set: `generate DESCRIPTORS FOLDER`.
//!
//! It is a crate of its own, so that who builds the client compiles no generator. protoc is the one
//! of grpcio-tools, which the repository has anyway; the Makefile calls it.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [descriptors, folder] = arguments.as_slice() else {
        return Err("usage: generate DESCRIPTORS FOLDER".into());
    };
    let descriptors = FileDescriptorSet::decode(fs::read(descriptors)?.as_slice())?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}
