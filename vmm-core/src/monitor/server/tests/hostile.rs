//! Clients that break rules, on purpose or not.

use super::*;

#[test]
fn garbage_is_answered_and_survived() {
    let running = Running::new();
    let mut client = running.raw();
    client.negotiate();
    for garbage in
        ["what?", "{]", "{\"execute\": stop}", "{\"execute\": \"stop", "[1, 2]", "{}", "{\"execute\": 1}"]
    {
        client.send(format!("{garbage}\n"));
        assert_eq!(client.line()["error"]["class"], "GenericError", "{garbage}");
    }
    client.send(r#"{"execute": "query-status", "id": "after"}"#);
    assert_eq!(client.line()["id"], "after");
}

#[test]
fn a_request_is_answered_wherever_it_is_split() {
    let running = Running::new();
    let request = br#"{"execute": "query-name", "arguments": {}, "id": {"n": 1}}"#;
    let mut client = running.raw();
    client.negotiate();
    for at in 0..request.len() {
        client.send(&request[..at]);
        std::thread::sleep(Duration::from_millis(1));
        client.send(&request[at..]);
        let answer = client.line();
        assert_eq!(
            (&answer["return"]["name"], &answer["id"]["n"]),
            (&"web".into(), &1.into()),
            "split at {at}"
        );
    }
}

#[test]
fn many_requests_in_one_write_are_all_answered_in_order() {
    let running = Running::new();
    let mut client = running.raw();
    client.negotiate();
    let mut sender = client.stream.try_clone().unwrap();
    let requests: Vec<_> = (0..2000).map(|n| format!(r#"{{"execute":"query-commands","id":{n}}}"#)).collect();
    let writer = std::thread::spawn(move || sender.write_all(requests.concat().as_bytes()).unwrap());
    for n in 0..2000 {
        assert_eq!(client.line()["id"], n);
    }
    writer.join().unwrap();
}

#[test]
fn a_request_that_is_too_long_costs_the_connection_and_nothing_else() {
    let running = Running::new();
    let mut client = running.raw();
    client.negotiate();
    let mut sender = client.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        // The server hangs up before all of it is written.
        let _ = sender.write_all(format!("{{\"execute\": \"{}", "x".repeat(4 << 20)).as_bytes());
    });
    assert!(client.line()["error"]["desc"].as_str().unwrap().contains("1 MiB"));
    running.wait_clients(0);
    writer.join().unwrap();
    running.client();
}

#[test]
fn a_client_that_never_reads_is_dropped_and_holds_up_nobody() {
    let running = Running::new();
    let mut silent = running.raw();
    silent.negotiate();
    let mut other = running.client();
    for _ in 0..40 {
        for _ in 0..500 {
            running.events.emit(Event::Shutdown { guest: true, reason: "guest-shutdown" });
        }
        other.execute("query-status", &serde_json::json!({})).unwrap();
    }
    running.wait_clients(1);
    other.execute("query-status", &serde_json::json!({})).unwrap();
}

#[test]
fn a_client_that_asks_and_never_reads_holds_up_nobody() {
    let running = Running::new();
    let mut greedy = running.raw();
    greedy.negotiate();
    greedy.stream.set_nonblocking(true).unwrap();
    let requests = r#"{"execute": "query-commands"}"#.repeat(1000);
    // Until the server takes no more from it.
    while greedy.stream.write(requests.as_bytes()).is_ok() {}
    running.client().execute("query-status", &serde_json::json!({})).unwrap();
    let server = running.server.lock().unwrap();
    let state = server.clients.values().next().unwrap().state();
    assert!(state.pending_output.len() < 128 << 10, "{} bytes", state.pending_output.len());
}

#[test]
fn fifty_clients_are_served_at_once() {
    let running = Running::new();
    let mut clients: Vec<_> = (0..50).map(|_| running.client()).collect();
    running.events.emit(Event::Resume);
    for client in &mut clients {
        client.execute("query-version", &serde_json::json!({})).unwrap();
        client.wait_event("RESUME", Duration::from_secs(5)).unwrap();
    }
    drop(clients);
    running.wait_clients(0);
}

#[test]
fn one_client_too_many_is_refused_and_the_others_stay() {
    let running = Running::new();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| running.client()).collect();
    assert!(Client::connect(&running.path).is_err());
    clients[0].execute("query-status", &serde_json::json!({})).unwrap();
}

#[test]
fn clients_that_hang_up_half_way_are_forgotten() {
    let running = Running::new();
    for _ in 0..100 {
        let mut client = running.raw();
        client.send(r#"{"execute": "qmp_cap"#);
    }
    running.wait_clients(0);
}

#[test]
fn a_client_that_has_said_all_is_still_answered() {
    let running = Running::new();
    let mut client = running.raw();
    client.send(r#"{"execute": "qmp_capabilities"}{"execute": "query-name"}"#);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.line().get("return").is_some());
    assert_eq!(client.line()["return"]["name"], "web");
    running.wait_clients(0);
}

#[test]
fn another_user_is_refused_even_if_the_file_lets_it_in() {
    use std::os::unix::fs::PermissionsExt;

    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let running = Running::new();
    for path in [running.path.parent().unwrap(), running.path.as_path()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let path = running.path.clone();
    let stranger = std::thread::spawn(move || {
        // SAFETY: the raw system call takes numbers only, and changes this thread's user alone.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        Client::connect(&path).map(drop)
    });
    assert!(matches!(stranger.join().unwrap(), Err(crate::monitor::client::ClientError::Closed)));
    running.client();
}
