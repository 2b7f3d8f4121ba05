//! What the commands take, return and refuse.

use serde_json::json;

use super::*;
use crate::monitor::ErrorClass;

fn error(client: &mut Client, command: &str, arguments: &Value) -> CommandError {
    client.execute(command, arguments).unwrap_err().command_error().unwrap().clone()
}

#[test]
fn nothing_is_executed_before_negotiation() {
    let running = Running::new();
    let mut client = running.raw();
    client.send(r#"{"execute": "stop"}"#);
    assert_eq!(client.line()["error"]["class"], "CommandNotFound");
    client.negotiate();
    client.send(r#"{"execute": "qmp_capabilities"}"#);
    assert_eq!(client.line()["error"]["class"], "CommandNotFound");
    assert!(running.control.calls.lock().unwrap().is_empty());
}

#[test]
fn events_reach_only_clients_past_negotiation() {
    let running = Running::new();
    let mut early = running.raw();
    let mut late = running.client();
    running.events.emit(Event::Stop);
    late.wait_event("STOP", Duration::from_secs(5)).unwrap();
    early.negotiate();
    running.events.emit(Event::Resume);
    assert_eq!(early.line()["event"], "RESUME");
}

#[test]
fn an_event_that_a_command_brought_about_comes_before_its_answer() {
    let running = Running::new();
    let mut client = running.raw();
    client.negotiate();
    client.send(r#"{"execute": "stop"}"#);
    let event = client.line();
    assert_eq!(event["event"], "STOP");
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(client.line(), json!({"return": {}}));
}

#[test]
fn a_command_waits_while_a_guest_is_taken_in() {
    let running = Running::new();
    let mut client = running.raw();
    client.negotiate();
    running.control.taking_in.store(true, Ordering::Relaxed);
    client.send(r#"{"execute": "system_powerdown"}"#);
    std::thread::sleep(Duration::from_millis(100));
    assert!(running.control.calls.lock().unwrap().is_empty());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    running.control.taking_in.store(false, Ordering::Relaxed);
    running.events.wake();
    assert_eq!(client.line(), json!({"return": {}}));
}

#[test]
fn handover_events_need_the_events_capability() {
    let running = Running::new();
    let mut client = running.client();
    let status = crate::monitor::MigrationStatus::Setup;
    running.events.emit(Event::Migration(status));
    let set = json!({"capabilities": [{"capability": "events", "state": true}]});
    client.execute("query-name", &json!({})).unwrap();
    client.execute("migrate-set-capabilities", &set).unwrap();
    running.events.emit(Event::Stop);
    running.events.emit(Event::Migration(status));
    let deadline = Instant::now() + Duration::from_secs(5);
    assert_eq!(client.next_event(deadline).unwrap().unwrap().name, "STOP");
    assert_eq!(client.next_event(deadline).unwrap().unwrap().data["status"], "setup");
}

#[test]
fn queries_have_qemus_shapes() {
    let running = Running::new();
    let mut client = running.client();
    for (command, expected) in [
        ("query-status", json!({"status": "running", "running": true})),
        ("query-name", json!({"name": "web"})),
        ("query-uuid", json!({"UUID": "07070707-0707-0707-0707-070707070707"})),
        ("query-migrate", json!({})),
        ("x-cpr-report", json!(null)),
        ("x-cpr-agent", json!({"socket": "/run/agent"})),
    ] {
        assert_eq!(client.execute(command, &json!({})).unwrap(), expected, "{command}");
    }
    let cpus = client.execute("query-cpus-fast", &json!({})).unwrap();
    assert_eq!((&cpus[0]["cpu-index"], &cpus[0]["thread-id"]), (&json!(0), &json!(42)));
    let commands = client.execute("query-commands", &json!({})).unwrap();
    assert!(commands.as_array().unwrap().contains(&json!({"name": "x-cpr-check"})));
}

#[test]
fn every_command_that_is_listed_is_known_and_refuses_unknown_arguments_by_name() {
    let running = Running::new();
    let mut client = running.client();
    for command in client.execute("query-commands", &json!({})).unwrap().as_array().unwrap() {
        let name = command["name"].as_str().unwrap();
        let arguments = match name {
            "qmp_capabilities" => continue,
            "migrate-set-capabilities" => json!({"capabilities": [], "colour": 1}),
            "balloon" => json!({"value": 1, "colour": 1}),
            "x-cpr-stay-awake" => json!({"seconds": 1, "colour": 1}),
            "x-cpr-check" => json!({"mode": "cpr-exec", "colour": 1}),
            _ => json!({"colour": 1}),
        };
        let error = error(&mut client, name, &arguments);
        assert_eq!(error.class, ErrorClass::GenericError, "{name}");
        assert!(error.desc.contains("'colour'"), "{name}: {}", error.desc);
    }
    assert!(running.control.calls.lock().unwrap().is_empty());
}

#[test]
fn what_is_not_there_is_command_not_found() {
    let running = Running::new();
    assert_eq!(error(&mut running.client(), "savevm", &json!({})).class, ErrorClass::CommandNotFound);
}

#[test]
fn parameters_are_set_one_by_one_and_read_back() {
    let running = Running::new();
    let mut client = running.client();
    client.execute("migrate-set-parameters", &json!({"mode": "cpr-exec"})).unwrap();
    let set = json!({"cpr-exec-command": ["/bin/x", "-a"], "downtime-limit": 7});
    client.execute("migrate-set-parameters", &set).unwrap();
    let read = client.execute("query-migrate-parameters", &json!({})).unwrap();
    assert_eq!(read["mode"], "cpr-exec");
    assert_eq!(read["cpr-exec-command"], json!(["/bin/x", "-a"]));
    assert_eq!(read["downtime-limit"], 7);
}

#[test]
fn wrong_parameters_are_refused_and_change_nothing() {
    let running = Running::new();
    let mut client = running.client();
    for (arguments, named) in [
        (json!({"mode": "cpr-luo"}), "mode"),
        (json!({"mode": "cpr-exec", "downtime-limit": 0}), "downtime-limit"),
        (json!({"mode": "cpr-exec", "downtime-limit": -1}), "downtime-limit"),
        (json!({"mode": "cpr-exec", "cpr-exec-command": "x"}), "cpr-exec-command"),
        (json!({"mode": "cpr-exec", "cpr-exec-command": [1]}), "cpr-exec-command"),
        (json!({"mode": "cpr-exec", "max-bandwidth": 1}), "max-bandwidth"),
    ] {
        let error = error(&mut client, "migrate-set-parameters", &arguments);
        assert!(error.desc.contains(named), "{arguments}: {}", error.desc);
    }
    assert_eq!(*running.control.parameters.lock().unwrap(), MigrateParameters::default());
}

fn channel(kind: &str, path: &str) -> Value {
    json!({"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": path}})
}

#[test]
fn each_mode_gets_the_destination_that_it_needs() {
    let running = Running::new();
    let mut client = running.client();
    for (mode, arguments, expected) in [
        (
            "cpr-transfer",
            json!({"channels": [channel("main", "/m"), channel("cpr", "/c")]}),
            "Transfer { cpr: \"/c\", main: \"/m\" }",
        ),
        (
            "cpr-transfer",
            json!({"channels": [channel("cpr", "/c")]}),
            "Transfer { cpr: \"/c\", main: \"/c\" }",
        ),
        ("cpr-exec", json!({"detach": true}), "Exec"),
        ("cpr-reboot", json!({"uri": "file:/f"}), "Reboot(File(\"/f\"))"),
        (
            "cpr-reboot",
            json!({"channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": "/f", "offset": 0}}]}),
            "Reboot(File(\"/f\"))",
        ),
        ("cpr-reboot", json!({"uri": "luo:"}), "Reboot(LiveUpdate(\"\"))"),
        ("cpr-reboot", json!({"uri": "file:/f", "x-cpr-wake": true}), "Reboot(File(\"/f\")), woken"),
        (
            "cpr-reboot",
            json!({"channels": [{"channel-type": "main", "addr": {"transport": "x-luo", "name": "web"}}]}),
            "Reboot(LiveUpdate(\"web\"))",
        ),
    ] {
        client.execute("migrate-set-parameters", &json!({"mode": mode})).unwrap();
        client.execute("migrate", &arguments).unwrap();
        assert_eq!(running.control.calls.lock().unwrap().pop().unwrap(), expected);
    }
}

#[test]
fn a_destination_that_its_mode_cannot_take_is_refused() {
    let running = Running::new();
    let mut client = running.client();
    assert!(error(&mut client, "migrate", &json!({"uri": "unix:/a"})).desc.contains("mode 'normal'"));
    for (mode, arguments, named) in [
        ("cpr-transfer", json!({"uri": "unix:/a"}), "missing 'cpr' migration channel"),
        ("cpr-transfer", json!({}), "missing 'cpr' migration channel"),
        ("cpr-transfer", json!({"uri": "tcp:host:1"}), "tcp:host:1"),
        ("cpr-transfer", json!({"channels": [channel("cpr", "/c"), channel("cpr", "/d")]}), "twice"),
        ("cpr-transfer", json!({"channels": [channel("data", "/c")]}), "data"),
        ("cpr-transfer", json!({"channels": [channel("cpr", "/c")], "uri": "unix:/a"}), "exclude"),
        (
            "cpr-transfer",
            json!({"channels": [{"channel-type": "cpr", "addr": {"transport": "file", "filename": "/f"}}]}),
            "must be unix",
        ),
        ("cpr-exec", json!({"uri": "file:/f"}), "leave"),
        ("cpr-reboot", json!({}), "file:PATH"),
        ("cpr-reboot", json!({"uri": "unix:/a"}), "file:PATH"),
        ("cpr-reboot", json!({"uri": "file:/f", "resume": true}), "resume"),
    ] {
        client.execute("migrate-set-parameters", &json!({"mode": mode})).unwrap();
        let error = error(&mut client, "migrate", &arguments);
        assert!(error.desc.contains(named), "{mode} {arguments}: {}", error.desc);
    }
    assert!(running.control.calls.lock().unwrap().is_empty());
}

#[test]
fn a_check_lists_blockers_and_knows_where_to() {
    let running = Running::new();
    let mut client = running.client();
    let answer = client.execute("x-cpr-check", &json!({"mode": "cpr-reboot", "uri": "file:/f"})).unwrap();
    assert_eq!(answer, json!({"blockers": [{"part": "pc.ram", "reason": "would not survive"}]}));
    client.execute("x-cpr-check", &json!({"mode": "cpr-transfer"})).unwrap();
    client.execute("x-cpr-check", &json!({"mode": "cpr-reboot", "suspend": true})).unwrap();
    let calls = running.control.calls.lock().unwrap();
    assert_eq!(*calls, ["check Some(Reboot(File(\"/f\")))", "check None", "check None, suspended"]);
}

#[test]
fn a_refusal_of_the_machine_reaches_the_client() {
    let running = Running::new();
    assert_eq!(error(&mut running.client(), "cont", &json!({})).desc, "the guest was given away");
}
