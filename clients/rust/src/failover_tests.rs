//! Tests of clients with several addresses: their forms, and where a completion goes on.

use std::time::Duration;

use tonic::Code;

use crate::addresses::{is_local, is_name, split};
use crate::error::is_left;
use crate::tries::{Failure, Tries};
use crate::{Client, Error, Tls};

#[test]
fn a_list_has_all_forms_of_addresses() {
    let list = " a:7000,b.example.org:1 ,[::1]:7000 , 127.0.0.1:65535,unix:/r.sock,unix:///r";
    let entries =
        ["a:7000", "b.example.org:1", "[::1]:7000", "127.0.0.1:65535", "unix:/r.sock", "unix:///r"];
    assert_eq!(split(list).unwrap(), entries);
    assert!(Client::new(list).is_ok());
    assert_eq!(split(" odd ").unwrap(), [" odd "]); // An address without a comma.
}

#[test]
fn the_wrong_entry_of_a_list_is_named() {
    for (list, wanted) in [
        ("a:1,", "entry 2 of the addresses, \"\", is empty"),
        ("a:1, ,b:1", "entry 2 of the addresses, \"\", is empty"),
        ("a:1,b", "entry 2 of the addresses, \"b\", is neither"),
        ("a:70000,b:1", "entry 1 of the addresses, \"a:70000\", is neither"),
        ("a:1,b:0", "\"b:0\", is neither"),
        ("a:1,:7", "\":7\", is neither"),
        ("a:1,::1:7", "\"::1:7\", is neither"),
        ("a:1,b:http", "\"b:http\", is neither"),
        ("a:1,user@b:1", "\"user@b:1\", is neither"),
        ("a:1,b:1/path", "\"b:1/path\", is neither"),
        ("a:1,two words:1", "has a space inside"),
        ("a:1,unix:", "has no path"),
        ("a:1,unix://", "has no path"),
        ("a:1,http://b:1", "has an unknown scheme"),
    ] {
        let error = Client::new(list).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.contains(wanted), "{list}: {}", error.message);
    }
}

#[test]
fn a_name_may_stand_for_several_daemons() {
    for one in ["127.0.0.1:1", "[::1]:1", "unix:/r.sock"] {
        assert!(!is_name(one) && is_local(one), "{one}");
    }
    assert!(is_name("localhost:1") && is_local("localhost:1"));
    assert!(is_name("ruvd.prod.svc:1") && !is_local("ruvd.prod.svc:1"));
}

#[test]
fn a_token_is_for_each_entry() {
    let client = |address: &str| Client::builder().address(address).token("secret");
    assert!(client("127.0.0.1:1,unix:/r.sock,localhost:1").build().is_ok());
    let remote = "127.0.0.1:1,unix:/r.sock,192.0.2.1:1";
    assert!(client(remote).build().unwrap_err().message.contains("192.0.2.1:1"));
    assert!(client(remote).tls(Tls::new()).build().is_ok());
}

const NO_PAUSE: Duration = Duration::ZERO;

fn three() -> (Client, Tries) {
    let client = Client::new("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3").unwrap();
    let tries = Tries::new(client.connections.clone());
    (client, tries)
}

fn error(message: &str) -> Error {
    Error::local(Code::Unavailable, message)
}

/// A stream that broke after an event is resumed at its daemon; then each address is tried at once.
#[test]
fn a_broken_completion_goes_on_at_each_address() {
    let (client, mut tries) = three();
    let first = tries.at;
    tries.event_received();
    let (pause, _) = tries.after(Failure::Lost, &error("broken")).unwrap();
    assert_eq!((tries.at, client.connections.now(), pause), (first, first, NO_PAUSE));
    for step in 1..=3 {
        let (pause, _) = tries.after(Failure::Lost, &error("broken")).unwrap();
        assert_eq!(tries.at, (first + step) % 3);
        assert_eq!(client.connections.now(), tries.at);
        assert_eq!(pause > NO_PAUSE, step == 3, "after each round");
    }
}

/// Another daemon may have a completion. The client's other calls stay where they are meanwhile.
#[test]
fn the_other_daemons_are_asked_for_a_completion() {
    let (client, mut tries) = three();
    let first = tries.at;
    for step in 1..=2 {
        tries.after(Failure::Missing, &error("missing")).unwrap();
        assert_eq!((tries.at, client.connections.now()), ((first + step) % 3, first));
    }
    let last = tries.after(Failure::Lost, &error("broken")).unwrap_err();
    assert_eq!(last.message, "missing");
}

/// A completion that a daemon has given up begins again at the next; one that it does not know, there.
#[test]
fn a_completion_begins_again_where_it_can() {
    let (client, mut tries) = three();
    let first = tries.at;
    tries.after(Failure::Forgotten, &error("forgotten")).unwrap();
    assert_eq!((tries.at, client.connections.now()), (first, first));
    tries.after(Failure::Left, &error("left")).unwrap();
    assert_eq!((tries.at, client.connections.now()), ((first + 1) % 3, (first + 1) % 3));
    assert!(tries.after(Failure::Final, &error("final")).is_err());
}

/// Two calls that fail at the same address move the client by one.
#[test]
fn an_address_is_left_once() {
    let (client, mut tries) = three();
    let mut other = Tries::new(client.connections.clone());
    tries.after(Failure::Lost, &error("broken")).unwrap();
    other.after(Failure::Lost, &error("broken")).unwrap();
    assert_eq!(tries.at, other.at);
}

#[test]
fn a_daemon_is_left_for_two_reasons() {
    let left = |reason: &str| {
        let mut error = error("no");
        error.reason = reason.into();
        is_left(&error)
    };
    assert!(left("SHUTTING_DOWN") && left("OWNERSHIP_LOST"));
    assert!(!left("SESSION_BUSY") && !left(""));
}
