//! The forms of a client's address: one entry, or a list of them with commas.

use std::net::IpAddr;

use tonic::codegen::http::Uri;

use crate::error::Error;

/// Returns the entries of a list. The error names the entry that is wrong.
///
/// An address without a comma is not checked here.
pub(crate) fn split(list: &str) -> Result<Vec<&str>, Error> {
    if !list.contains(',') {
        return Ok(vec![list]);
    }
    let entries = list.split(',').map(str::trim).enumerate();
    entries
        .map(|(index, entry)| match problem(entry) {
            None => Ok(entry),
            Some(problem) => {
                let number = index + 1;
                let text = format!("entry {number} of the addresses, {entry:?}, {problem}");
                Err(Error::invalid(text))
            }
        })
        .collect()
}

fn problem(entry: &str) -> Option<&'static str> {
    if entry.is_empty() {
        return Some("is empty");
    }
    if entry.contains(char::is_whitespace) {
        return Some("has a space inside");
    }
    if let Some(path) = entry.strip_prefix("unix:") {
        return path.trim_matches('/').is_empty().then_some("has no path");
    }
    if entry.contains("://") {
        return Some("has an unknown scheme");
    }
    let uri = format!("http://{entry}").parse::<Uri>().ok();
    let is_right = uri.is_some_and(|uri| {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or_default();
        let has_more = uri.path() != "/" || uri.query().is_some() || entry.contains(['@', '/']);
        !host.is_empty() && port > 0 && !has_more
    });
    (!is_right).then_some("is neither host:port, with a port from 1 to 65535, nor unix:PATH")
}

pub(crate) fn is_socket(entry: &str) -> bool {
    entry.starts_with("unix:")
}

/// Whether an entry may stand for several daemons.
pub(crate) fn is_name(entry: &str) -> bool {
    !is_socket(entry) && host(entry).is_none_or(|host| ip(&host).is_none())
}

/// Whether nothing that is sent to an entry leaves this machine.
pub(crate) fn is_local(entry: &str) -> bool {
    is_socket(entry) || host(entry).is_some_and(|host| is_loopback(&host))
}

/// Returns the host that is called, not what looks like it in the text of the entry.
fn host(entry: &str) -> Option<String> {
    let uri = format!("http://{entry}").parse::<Uri>().ok()?;
    uri.host().map(str::to_owned)
}

/// Whether nothing that is sent to the host of a URI leaves this machine.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || ip(host).is_some_and(|ip| ip.to_canonical().is_loopback())
}

/// Returns the IP address that a URI's host is, if it is one.
fn ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
