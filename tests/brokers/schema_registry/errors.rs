//! Whatever a registry answers, the user is told what failed, where and what to do, and no credentials; and a job that
//! waits for a registry stops when it is told to, with nothing lost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tidegate::Error;
use tidegate::error::ErrorKind;
use tidegate::kafka::{self, AvroSchema, SchemaKind, SchemaRegistry};
use tidegate::source::kafka::EmbeddedBroker;

use crate::run::{TIDEGATE, run, start};
use super::server::{Asked, Server, answer, certificate, refusal, registry};

const SCHEMA: &str = r#"{"type": "record", "name": "a.One", "fields": [{"name": "x", "type": "long"}]}"#;

/// What a test asks a registry for.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// The schema of an id.
    Id,
    /// To register a schema.
    Register,
    /// The id of an output's schema.
    Output,
}

/// Asks a registry at a path of a server, with user and password in the URL.
fn ask(server: &Server, retry_for: Duration, question: Question) -> Result<(), Error> {
    let registry = SchemaRegistry::new(&format!("http://me:secret@{}/api", server.address)).retry_for(retry_for);
    match question {
        Question::Id => registry.fetch(7).map(drop),
        Question::Register => registry.register("s/x-value", SchemaKind::Avro, SCHEMA).map(drop),
        Question::Output => kafka::AvroEncoder::new(&registry, "s/x", AvroSchema::parse(SCHEMA).unwrap()).prepare(),
    }
}

/// A case: the answer, the question, the kind of the failure, the places of its texts, and the number of requests.
type Case = (Option<Vec<u8>>, Question, ErrorKind, [&'static str; 3], usize);

/// Answers that refuse access, or a schema.
fn refusals() -> [Case; 6] {
    use ErrorKind::{AccessRefused, SchemaRefused};
    [
        (
            refusal(401, 401, "Unauthorized"),
            Question::Id,
            AccessRefused,
            ["the schema registry refuses access", "status 401: ", "; check user and password"],
            1,
        ),
        (
            answer(403, &[], ""),
            Question::Register,
            AccessRefused,
            ["the schema registry refuses access", "status 403; ", "; allow the user what the request asks for"],
            1,
        ),
        (
            refusal(404, 40401, "Subject 's/x-value' not found."),
            Question::Output,
            SchemaRefused,
            ["the schema of an output is not registered", "subject s/x-value", "; register it, or let the job do so"],
            1,
        ),
        (
            refusal(409, 409, "Schema being registered is incompatible with an earlier schema"),
            Question::Register,
            SchemaRefused,
            [
                "the schema is incompatible with earlier versions",
                "error 409: Schema being registered is incompatible",
                "; change the schema, or the subject's compatibility level",
            ],
            2,
        ),
        (
            answer(409, &[], r#"{"message": "no code"}"#),
            Question::Register,
            SchemaRefused,
            ["the schema is incompatible", "error 409: no code", "; change the schema"],
            2,
        ),
        (
            refusal(422, 42201, "Invalid schema"),
            Question::Register,
            SchemaRefused,
            ["the schema registry refuses a request", "error 42201: Invalid schema", "; correct the schema"],
            1,
        ),
    ]
}

/// Answers that make no use of the registry.
fn useless_answers() -> [Case; 7] {
    use ErrorKind::SourceUnreachable;
    let html = "<html>Welcome</html>";
    let elsewhere = ["Location: https://you:hidden@elsewhere.example/api/x?token=hidden"];
    let large = format!("{{\"schema\": \"{}\"}}", "x".repeat(9 << 20));
    [
        (
            answer(429, &["Retry-After: 3600"], ""),
            Question::Id,
            SourceUnreachable,
            ["the schema registry gets too many requests", "status 429", "; raise its limit, or start again later"],
            1,
        ),
        (
            answer(200, &[], html),
            Question::Id,
            SourceUnreachable,
            [
                "there is no schema registry, or another API of it",
                html,
                "; check the registry's URL and the path in it",
            ],
            1,
        ),
        (
            answer(404, &[], html),
            Question::Register,
            SourceUnreachable,
            ["there is no schema registry, or another API of it", "status 404: <html>", "; check the registry's URL"],
            1,
        ),
        (
            answer(301, &elsewhere, ""),
            Question::Id,
            SourceUnreachable,
            [
                "the schema registry redirects, which is not followed",
                "status 301, to https://elsewhere.example/api/x; ",
                "; name the URL that it leads to",
            ],
            1,
        ),
        (
            answer(307, &[], ""),
            Question::Register,
            SourceUnreachable,
            ["the schema registry redirects", "to nowhere", "; name the URL"],
            1,
        ),
        (
            answer(200, &[], &large),
            Question::Id,
            SourceUnreachable,
            ["the schema registry cannot be asked", "its answer is longer than 8 MiB", "; check the registry's URL"],
            1,
        ),
        (
            answer(200, &[], "{}"),
            Question::Id,
            SourceUnreachable,
            ["the schema registry answers without a schema", "", "; check the registry's URL"],
            1,
        ),
    ]
}

#[test]
fn what_a_registry_refuses_is_told_with_the_place_and_the_remedy() {
    for (bytes, question, kind, texts, requests) in refusals().into_iter().chain(useless_answers()) {
        let server = Server::start(move |_, _| bytes.clone());
        let error = ask(&server, Duration::from_secs(60), question).unwrap_err();
        let (said, asked) = (error.to_string(), server.asked());
        assert_eq!((error.kind(), asked.len()), (kind, requests), "{said}");
        let place = format!("http://{}/api", server.address);
        for text in texts.iter().chain([&place.as_str()]) {
            assert!(said.contains(text), "`{text}` is not in: {said}");
        }
        assert!(!said.contains("secret") && !said.contains("hidden"), "{said}");
        // They are sent, and nowhere else.
        assert!(asked[0].head.contains("\r\nauthorization: basic bwu6c2vjcmv0\r\n"), "{}", asked[0].head);
    }
    let server = Server::start(|_, _| answer(401, &[], ""));
    let error = SchemaRegistry::new(&format!("http://{}", server.address)).fetch(1).unwrap_err().to_string();
    assert!(error.ends_with("; name user and password: none were given"), "{error}");
    // An id that is unknown is no failure.
    let server = Server::start(|_, _| refusal(404, 40403, "Schema not found"));
    ask(&server, Duration::ZERO, Question::Id).unwrap();
}

#[test]
fn a_conflict_with_the_same_schema_is_no_failure() {
    // The first request took effect and its answer was lost, so it is sent again.
    let server = Server::start(|asked, before| match (before, asked.line.contains("/versions?")) {
        (0, _) => answer(503, &[], "busy"),
        (_, true) => refusal(409, 409, "An artifact with ID 's/x-value' in group 'default' already exists."),
        (_, false) => answer(200, &[], r#"{"id": 7}"#),
    });
    let registry = SchemaRegistry::new(&format!("http://{}", server.address));
    assert_eq!(registry.register("s/x-value", SchemaKind::Avro, SCHEMA).unwrap(), 7);
    let lines: Vec<_> = server.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].starts_with("POST /subjects/s%2Fx-value?"), "{lines:?}");
}

#[test]
fn what_may_pass_is_asked_again_until_it_has_passed_or_retries_are_over() {
    let good = || answer(200, &[], r#"{"schema": "\"string\""}"#);
    // The third request is answered.
    for status in [408, 500, 502, 503] {
        let server = Server::start(move |_, before| if before < 2 { answer(status, &[], "busy") } else { good() });
        ask(&server, Duration::from_secs(60), Question::Id).unwrap();
        assert_eq!(server.asked().len(), 3, "{status}");
    }
    // A pause that is asked for is made.
    let server =
        Server::start(move |_, before| if before == 0 { answer(429, &["Retry-After: 1"], "") } else { good() });
    let begun = Instant::now();
    ask(&server, Duration::from_secs(60), Question::Id).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1) && server.asked().len() == 2);
    // Retries end.
    let server = Server::start(|_, _| answer(503, &[], "down for good"));
    let error = ask(&server, Duration::from_millis(500), Question::Register).unwrap_err();
    let (said, asked) = (error.to_string(), server.asked().len());
    assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
    let place = format!("http://{}/api/subjects/s%2Fx-value/versions?normalize=true", server.address);
    let expected =
        format!("the schema registry fails ({place}): status 503: down for good; see the registry's own log");
    assert!(said.starts_with(&expected) && asked > 1, "{asked} requests: {said}");
    // So they do for an answer that is cut off.
    let server = Server::start(|_, _| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"sche".to_vec()));
    let said = ask(&server, Duration::from_millis(500), Question::Id).unwrap_err().to_string();
    assert!(
        said.starts_with("the schema registry cannot be asked (http://127.0.0.1:") && server.asked().len() > 1,
        "{said}"
    );
}

#[test]
fn a_registry_that_keeps_the_connection_and_says_nothing_is_given_up() {
    let server = Server::start(|_, _| None);
    let error = ask(&server, Duration::from_millis(1), Question::Id).unwrap_err();
    let said = error.to_string();
    let expected = format!("(http://{}/api/schemas/ids/7): no whole answer within 10 s; see whether", server.address);
    assert!(error.kind() == ErrorKind::SourceUnreachable && said.contains(&expected), "{said}");
}

#[test]
fn over_tls_the_registry_has_to_have_a_certificate_of_an_authority_that_is_trusted() {
    let (own, other) = (certificate("own authority", None), certificate("other authority", None));
    let of_own = certificate("registry", Some(&own));
    let good = |_: &Asked, _| answer(200, &[], r#"{"schema": "text"}"#);
    let server = Server::start_tls(&of_own, good);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, (certificate, _): &(openssl::x509::X509, _)| {
        let path = folder.path().join(name);
        fs::write(&path, certificate.to_pem().unwrap()).unwrap();
        path
    };
    let (own, other) = (file("own.pem", &own), file("other.pem", &other));
    let registry = SchemaRegistry::new(&format!("https://me:secret@{}", server.address));
    let found = registry.clone().ca_file(&own).fetch(1).unwrap().unwrap();
    assert_eq!((found.kind, found.text.as_str()), (SchemaKind::Avro, "text"));
    // Neither another authority's nor the system's certificates will do; it is told at once.
    for registry in [registry.clone().ca_file(other), registry] {
        let error = registry.fetch(1).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
        let place = format!(
            "there is no secure connection to the schema registry (https://{}/schemas/ids/1): ",
            server.address
        );
        assert!(said.starts_with(&place) && said.contains("certificate verify failed"), "{said}");
        assert!(said.contains("; name the file of the certificates") && !said.contains("secret"), "{said}");
    }
    assert_eq!(server.asked().len(), 1, "no request goes to who is not trusted");
    // A server without TLS.
    let plain = Server::start(good);
    let said = SchemaRegistry::new(&format!("https://{}", plain.address)).fetch(1).unwrap_err().to_string();
    assert!(said.starts_with("there is no secure connection to the schema registry"), "{said}");
    // The flag of programs.
    let broker = EmbeddedBroker::start().unwrap();
    let words = ["--registry-ca-file".into(), own.display().to_string()];
    let output = produce(&broker, &format!("https://{}", server.address), &words);
    let said = output.error(1);
    assert!(said.contains("the schema registry answers without an id"), "{said}");
}

/// Writes 500 transactions to the topic `transaction` in Avro.
fn produce(broker: &EmbeddedBroker, registry: &str, more: &[String]) -> crate::run::ProgramOutput {
    let line = format!(
        "produce --brokers {} --generate 500 --start-ms 1700000000000 --format avro --registry {registry}",
        broker.servers()
    );
    run(TIDEGATE, line.split_whitespace().map(str::to_owned).chain(more.iter().cloned()))
}

#[test]
fn a_job_that_waits_for_a_registry_stops_when_it_is_told_to_and_goes_on_with_what_it_waited_for() {
    let (broker, here) = (EmbeddedBroker::start().unwrap(), Server::start(registry()));
    broker.create_topic("transaction", 2).unwrap();
    produce(&broker, &format!("http://{}", here.address), &[]).code(0);
    let folder = tempfile::tempdir().unwrap();
    let words = |registry: &Server, rest: &str| {
        let line = format!(
            "--brokers {} --format avro --registry http://{} --out {{}}/out.csv --state {{}}/state -w 2 {rest}",
            broker.servers(),
            registry.address
        );
        let folder: &Path = folder.path();
        line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect::<Vec<_>>()
    };
    // One that takes the request and does not answer; one that is not ready; one that asks to be left alone.
    let silent = Server::start(|_, _| None);
    let failing = Server::start(|_, _| answer(503, &[], "starting"));
    let busy = Server::start(|_, _| answer(429, &["Retry-After: 50"], ""));
    for away in [silent, failing, busy] {
        let mut running = start("account_totals", words(&away, ""));
        running.wait_until("a request", |_| (!away.asked().is_empty()).then_some(()));
        let begun = Instant::now();
        running.signal(Signal::SIGTERM);
        let ended = running.end();
        ended.code(143);
        // It takes a third of a second if the machine has nothing else to do; a request alone may take 10.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}:\n{}", begun.elapsed(), ended.stderr);
    }
    // Nothing was rejected, and nothing is lost.
    let ended = run("account_totals", words(&here, "--until-end"));
    ended.code(0);
    assert!(ended.stderr.contains("500 records read = 500 accepted + 0 rejected"), "{}", ended.stderr);
    assert!(here.asked().len() < 10, "an id is asked for once");
}
