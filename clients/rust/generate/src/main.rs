//! Writes the client's stubs from a descriptor set: `generate DESCRIPTORS FOLDER`.
//!
//! It is a crate of its own, so that who builds the client compiles no generator. protoc is the one
//! of grpcio-tools, which the repository has anyway; the Makefile calls it. Each package is a file
//! for itself, so that `crate::v1` and `crate::rpc` need no modules around them.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [descriptors, folder] = arguments.as_slice() else {
        return Err("usage: generate DESCRIPTORS FOLDER".into());
    };
    let all = FileDescriptorSet::decode(fs::read(descriptors)?.as_slice())?;
    let configured = || tonic_prost_build::configure().build_server(false).out_dir(folder);
    configured().extern_path(".google.rpc", "crate::rpc").compile_fds(all.clone())?;
    // Google's comments are not ours to publish, and their examples are no Rust.
    let mut google = all;
    google.file.retain(|file| file.package().starts_with("google."));
    google.file.iter_mut().for_each(|file| file.source_code_info = None);
    Ok(configured().compile_fds(google)?)
}
