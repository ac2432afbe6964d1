//! Writes the client's stubs from a descriptor set: `generate DESCRIPTORS FOLDER`.
//!
//! It is a separate crate, so that building the client does not compile the generator. The Makefile
//! makes the descriptor set with the protoc of grpcio-tools, which the repository needs anyway.

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
        // A later version may have more values and events.
        .enum_attribute(".", "#[non_exhaustive]")
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}
