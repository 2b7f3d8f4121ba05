//! The monitor's sockets in another process's hands, and its socket file.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;
use crate::cpr::fds::FdName;

/// Another process: it has the descriptors and the state, and its own server.
fn next(state: MonitorState, fds: &mut FdTable, path: PathBuf) -> Running {
    let running = Running::silent(tempfile::tempdir().unwrap(), path);
    running.server.lock().unwrap().adopt(state, fds).unwrap();
    running
}

#[test]
fn clients_live_on_in_the_next_image_with_what_is_under_way() {
    let mut old = Running::new();
    let mut half = old.raw();
    half.negotiate();
    half.send(r#"{"execute": "query-na"#);
    let mut greeted = old.raw();
    let mut whole = old.client();
    whole.execute("query-status", &json!({})).unwrap();
    old.halt();
    // Sent while nobody serves: it waits in the socket.
    greeted.send(r#"{"execute": "qmp_capabilities", "id": 1}"#);
    old.events.emit(Event::Stop);

    let mut fds = FdTable::new();
    let state = old.server.lock().unwrap().export(true, &mut fds).unwrap();
    assert_eq!((state.clients.len(), fds.len()), (3, 4));
    let path = old.path.clone();
    let keep = old;
    let new = next(state, &mut fds, path);
    fds.finish().unwrap();

    assert_eq!(half.line()["event"], "STOP");
    half.send(r#"me"}"#);
    assert_eq!(half.line()["return"]["name"], "web");
    assert_eq!(greeted.line()["id"], 1);
    whole.wait_event("STOP", Duration::from_secs(5)).unwrap();
    whole.execute("query-status", &json!({})).unwrap();
    new.client().execute("query-status", &json!({})).unwrap();
    drop(keep);
}

#[test]
fn a_complete_request_that_was_not_answered_is_answered_by_the_next_image() {
    let new = Running::silent(tempfile::tempdir().unwrap(), PathBuf::new());
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut fds = FdTable::new();
    fds.insert(FdName::new("monitor.client", 0), theirs.into()).unwrap();
    let client = MonitorClientState {
        negotiated: true,
        pending_input: br#"{"execute": "query-name"}"#.to_vec(),
        ..Default::default()
    };
    let state = MonitorState { listeners: Vec::new(), clients: vec![client] };
    new.server.lock().unwrap().adopt(state, &mut fds).unwrap();
    let mut raw = Raw { stream: ours, input: Vec::new() };
    assert_eq!(raw.line()["return"]["name"], "web");
}

#[test]
fn an_export_that_leads_to_nothing_changes_nothing() {
    let old = Running::new();
    let mut client = old.client();
    let mut fds = FdTable::new();
    old.server.lock().unwrap().export(true, &mut fds).unwrap();
    drop(fds);
    client.execute("query-status", &json!({})).unwrap();
    old.client().execute("query-status", &json!({})).unwrap();
}

#[test]
fn in_a_transfer_the_listener_goes_and_the_clients_stay() {
    let old = Running::new();
    let mut client = old.client();
    let mut fds = FdTable::new();
    let state = {
        let mut server = old.server.lock().unwrap();
        let state = server.export(false, &mut fds).unwrap();
        server.release_listeners();
        state
    };
    client.execute("query-status", &json!({})).unwrap();
    let new = next(state, &mut fds, old.path.clone());
    let mut other = new.client();
    other.execute("stop", &json!({})).unwrap();
    assert_eq!(*new.control.calls.lock().unwrap(), ["stop"]);
    assert!(old.control.calls.lock().unwrap().is_empty());
    old.server.lock().unwrap().finish(Duration::ZERO);
    assert!(old.path.exists(), "the socket file belongs to the other process now");
}

#[test]
fn a_descriptor_that_is_no_fitting_socket_is_refused_and_named() {
    let listening = MonitorState { listeners: vec![b"/x".to_vec()], clients: Vec::new() };
    let connected = MonitorState { listeners: Vec::new(), clients: vec![MonitorClientState::default()] };
    let running = Running::silent(tempfile::tempdir().unwrap(), PathBuf::new());
    let pair = || -> std::os::fd::OwnedFd { UnixStream::pair().unwrap().0.into() };
    let null = || -> std::os::fd::OwnedFd { std::fs::File::open("/dev/null").unwrap().into() };
    let tcp = || -> std::os::fd::OwnedFd { std::net::TcpListener::bind("127.0.0.1:0").unwrap().into() };
    for (state, name, fd) in [
        (&listening, "monitor.listen", pair()),
        (&listening, "monitor.listen", null()),
        (&listening, "monitor.listen", tcp()),
        (&connected, "monitor.client", null()),
    ] {
        let mut fds = FdTable::new();
        fds.insert(FdName::new(name, 0), fd).unwrap();
        let error = running.server.lock().unwrap().adopt(state.clone(), &mut fds).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let missing = running.server.lock().unwrap().adopt(listening, &mut FdTable::new()).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
}

#[test]
fn the_socket_is_its_owners_alone_and_gone_at_the_end() {
    let running = Running::new();
    assert_eq!(std::fs::metadata(&running.path).unwrap().permissions().mode() & 0o777, 0o600);
    running.server.lock().unwrap().finish(Duration::ZERO);
    assert!(!running.path.exists());
}

#[test]
fn the_end_waits_for_a_client_to_read_but_not_for_ever() {
    let running = Running::new();
    let mut client = running.client();
    running.events.emit(Event::Shutdown { guest: false, reason: "host-qmp-quit" });
    running.server.lock().unwrap().finish(Duration::from_millis(200));
    assert_eq!(client.wait_event("SHUTDOWN", Duration::from_secs(5)).unwrap().data["guest"], false);
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = Listener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(MonitorError::InUse(_))));
    drop(first);
    Listener::bind(&path).unwrap();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(MonitorError::NoSocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
