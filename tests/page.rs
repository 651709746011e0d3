//! The page of a job, in a real browser, and the paths that it asks: `/graph` and `/history`.
//!
//! The job runs in a process of its own, over two files that are followed: it is killed, and comes back. Its names, and
//! a row of its view, are HTML that would run a script.
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/browser.rs"]
mod browser;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use browser::Browser;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{Job, State, Window, csv};

/// Variable with the folder of the job that the child runs, and its address.
const CHILD: &str = "TIDEGATE_PAGE_JOB";
const SILENT: &str = r#"<img src=x onerror="window.hacked='source'">"#;
const STEP: &str = "<b>totals</b>";
const VIEW: &str = "<i>balances</i>";
/// An account whose name is HTML.
const ACCOUNT: &str = "<img src=x onerror=window.hacked=1>";
const LONG: Duration = Duration::from_secs(90);
const TOKEN: &str = "correct-horse-battery-staple";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Entry {
    account: String,
    amount: i64,
    at_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Balance {
    account: String,
    balance: i64,
}

/// Not a test: the job that the tests watch. It ends with them, as its standard input ends.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn the_job() {
    let Ok(line) = std::env::var(CHILD) else { return };
    let (folder, address) = line.split_once('\n').unwrap();
    let folder = PathBuf::from(folder);
    let file = |name: &str| {
        let source = csv::Source::new(folder.join(name)).event_time(|entry: &Entry| entry.at_ms);
        source.out_of_order(Duration::ZERO).idle_after(Duration::from_secs(3_600))
    };
    let (silent, live) = (file("silent.csv"), file("live.csv"));
    let (totals, balances) = (csv::Sink::new(folder.join("totals.csv")), csv::Sink::new(folder.join("balances.csv")));
    let state = State::at(folder.join("state")).snapshot_every(Duration::from_millis(300));
    let job = Job::new("job <b>bold</b>").http(address).state(state).epoch(Duration::from_millis(20));
    let token = folder.join("token");
    let job = if token.exists() { job.http_token_file(token) } else { job };
    let watcher = job.watcher();
    std::thread::spawn(move || {
        let address = loop {
            match watcher.http_address() {
                Some(address) => break address.to_string(),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        fs::write(folder.join("new"), address).unwrap();
        fs::rename(folder.join("new"), folder.join("address")).unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let ran = job.run(move |flow| {
        let live = flow.read("live", &live);
        let sums = live.clone().key_by(|entry| entry.account.clone()).window(Window::global());
        let sums = sums.aggregate("sums", |each| each.sum(|entry| entry.amount)).on_change();
        let sums = sums.map(|row| Balance { account: row.key, balance: row.value as i64 });
        sums.clone().view(VIEW);
        sums.write("balances", &balances);
        let both = live.concat(flow.read(SILENT, &silent)).key_by(|entry| entry.account.clone());
        let minutes = both.window(Window::tumbling(Duration::from_secs(60)));
        let minutes = minutes.aggregate(STEP, |each| each.sum(|entry| entry.amount)).on_close();
        let rows = minutes.map(|row| Balance { account: row.key, balance: row.value as i64 });
        rows.write("totals", &totals);
    });
    panic!("the job ended: {ran:?}");
}

/// A job in a process of its own.
struct RunningJob {
    folder: TempDir,
    child: Child,
    address: String,
}

impl RunningJob {
    fn start() -> RunningJob {
        RunningJob::start_in(tempfile::tempdir().unwrap())
    }

    /// Starts a job that asks for a token.
    fn start_with_token() -> RunningJob {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), TOKEN).unwrap();
        RunningJob::start_in(folder)
    }

    fn start_in(folder: TempDir) -> RunningJob {
        for name in ["silent.csv", "live.csv"] {
            fs::write(folder.path().join(name), "account,amount,at_ms\n").unwrap();
        }
        let child = Self::child(folder.path(), "127.0.0.1:0");
        let mut job = RunningJob { folder, child, address: String::new() };
        job.address = job.wait_for_address();
        job
    }

    fn child(folder: &Path, address: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "the_job"]).env(CHILD, format!("{}\n{address}", folder.display()));
        let log = OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn wait_for_address(&mut self) -> String {
        let (path, begun) = (self.folder.path().join("address"), Instant::now());
        loop {
            if let Ok(address) = fs::read_to_string(&path) {
                fs::remove_file(path).unwrap();
                return address;
            }
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < LONG, "the job does not serve: {ended:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the job again, at the address that it had.
    fn come_back(&mut self) {
        self.child = Self::child(self.folder.path(), &self.address);
        assert_eq!(self.wait_for_address(), self.address);
    }

    fn append(&self, file: &str, line: &str) {
        let mut file = OpenOptions::new().append(true).open(self.folder.path().join(file)).unwrap();
        writeln!(file, "{line}").unwrap();
    }

    /// Returns the head and the text of an answer.
    fn get(&self, path: &str, accept: &str) -> (String, String) {
        let (head, body) = self.get_with(path, &format!("Accept: {accept}\r\n"));
        (head, String::from_utf8(body).unwrap())
    }

    /// Returns the head and the bytes of the answer to a request with these headers.
    fn get_with(&self, path: &str, headers: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n{headers}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        (head.to_ascii_lowercase(), answer[end + 4..].to_vec())
    }

    fn json(&self, path: &str) -> Value {
        let (head, text) = self.get(path, "*/*");
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{path}: {why}: {head}\n{text}"))
    }

    /// Asks a path until its answer satisfies `holds`.
    fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.json(path);
            if holds(&answer) {
                return answer;
            }
            assert!(begun.elapsed() < LONG, "{path} stays {answer}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `/graph` has the steps and edges of the running query; `/history` has the figures that `/metrics` has.
#[test]
fn graph_and_history_are_those_of_the_running_job() {
    let job = RunningJob::start();
    let graph = job.json("/graph");
    let edges: Vec<String> = serde_json::from_value::<Vec<Value>>(graph["edges"].clone())
        .unwrap()
        .iter()
        .map(|edge| format!("{} > {}", edge["from"].as_str().unwrap(), edge["to"].as_str().unwrap()))
        .collect();
    let expected = [
        "source live > window sums".to_owned(),
        format!("source live > window {STEP}"),
        format!("window sums > view {VIEW}"),
        "window sums > sink balances".to_owned(),
        format!("source {SILENT} > window {STEP}"),
        format!("window {STEP} > sink totals"),
    ];
    assert_eq!(edges, expected);
    let nodes = graph["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 7);
    assert!(nodes[0]["detail"].as_str().unwrap().contains("live.csv"), "{graph}");

    job.append("silent.csv", "a,1,100000");
    // The third moves the watermark past the first two windows, the fourth is late, the fifth is no record.
    for line in ["a,1,1000", "b,5,50000", "a,2,130000", "a,9,2000", "a,none,2000"] {
        job.append("live.csv", line);
    }
    let last = |history: &Value| history["samples"].as_array().unwrap().last().cloned().unwrap_or_default();
    let counts = |sample: &Value| ["read", "late", "rejected"].map(|name| sample[name].as_u64().unwrap_or_default());
    let history = job.until("/history", |history| {
        let sample = last(history);
        counts(&sample) == [6, 1, 1]
            && sample["published"].as_u64() >= Some(4)
            && sample["snapshots"].as_u64() >= Some(1)
    });
    let sample = last(&history);
    let (_, metrics) = job.get("/metrics", "*/*");
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(sample["read"], sum("tidegate_source_records_total"), "{sample}\n{metrics}");
    assert_eq!(sample["late"], sum("tidegate_step_late_total"), "{sample}");
    assert!(sum("tidegate_sink_rows_total") >= sample["published"].as_u64().unwrap(), "{sample}\n{metrics}");
    // Epochs of 20 ms are published all the time.
    let latencies = ["latency_p50_ms", "latency_p99_ms"].map(|name| sample[name].as_f64().unwrap());
    assert!(latencies[0] > 0.0 && latencies[0] <= latencies[1], "{sample}");
    assert!(sample["snapshot_ms"].is_u64() && sample["snapshot_age_ms"].is_u64(), "{sample}");
    let number = sample["number"].as_u64().unwrap();
    let later =
        job.until(&format!("/history?since={number}"), |later| !later["samples"].as_array().unwrap().is_empty());
    assert_eq!(later["samples"][0]["number"], number + 1);
    assert_eq!(later["started_ms"], history["started_ms"]);
    assert!(job.get("/history?since=x", "*/*").0.contains(" 400 "));
}

/// Checks a value against a schema. Objects have no field that the schema does not describe.
fn check_schema(all: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return check_schema(all, all.pointer(name.strip_prefix('#').unwrap()).unwrap(), value, place);
    }
    if let Some(options) = schema["anyOf"].as_array() {
        let of_type = |option: &&Value| (option["type"] == "null") == value.is_null();
        return check_schema(all, options.iter().find(of_type).unwrap(), value, place);
    }
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type: {other}"),
    };
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    assert!(kinds.iter().any(is), "{place} is no {kinds:?}: {value}");
    if let Some(options) = schema["enum"].as_array() {
        assert!(options.contains(value), "{place} is none of {options:?}: {value}");
    }
    for item in value.as_array().into_iter().flatten() {
        check_schema(all, &schema["items"], item, &format!("{place}[]"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{place} has no {name}: {value}");
    }
    if let (Some(described), Some(fields)) = (schema["properties"].as_object(), value.as_object()) {
        for (name, field) in fields {
            let schema = described.get(name).unwrap_or_else(|| panic!("{place} has a field {name}: {value}"));
            check_schema(all, schema, field, &format!("{place}.{name}"));
        }
    }
}

/// `docs/openapi.json` describes all paths, and each answers as it says.
#[test]
fn each_path_answers_as_its_description_says() {
    let description = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    let job = RunningJob::start();
    job.append("live.csv", "a,1,1000");
    job.until("/history", |history| {
        history["samples"].as_array().unwrap().iter().any(|sample| sample["snapshots"] != 0)
    });
    let paths = description["paths"].as_object().unwrap();
    for listed in job.get("/", "*/*").1.trim().split(", ") {
        let listed = listed.split('?').next().unwrap().replace("NAME", "{name}");
        assert!(paths.contains_key(&listed), "{listed} is not described");
    }
    for (path, methods) in paths {
        let parameters = methods["get"]["parameters"].as_array().into_iter().flatten();
        let query: Vec<_> = (parameters.clone().filter(|parameter| parameter["in"] == "query"))
            .map(|parameter| {
                let example = &parameter["example"];
                let example = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
                format!("{}={example}", parameter["name"].as_str().unwrap())
            })
            .collect();
        let path = path.replace("{name}", "%3Ci%3Ebalances%3C/i%3E");
        let content = methods["get"]["responses"]["200"]["content"].as_object().unwrap();
        for asked in ["", &query.join("&")] {
            if path.ends_with("/changes") {
                continue; // Endless.
            }
            let (head, text) = job.get(&format!("{path}?{asked}"), "*/*");
            let status = head.split(' ').nth(1).unwrap();
            assert!(methods["get"]["responses"].get(status).is_some(), "{path}?{asked}: {head}");
            let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
            let kind = kind.split(';').next().unwrap();
            // In gzip it is the same kind of answer; only long ones come in it, as described.
            let (zipped, bytes) = job.get_with(&format!("{path}?{asked}"), "Accept-Encoding: gzip\r\n");
            if zipped.contains("content-encoding: gzip") {
                let mut text = String::new();
                flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
                assert!(text.len() >= 1024, "{path}: {text}");
                assert!(methods["get"]["responses"]["200"]["headers"]["Content-Encoding"].is_object(), "{path}");
            }
            assert_eq!(zipped.split(' ').nth(1).unwrap(), status, "{path}?{asked}: {zipped}");
            let of_status = methods["get"]["responses"][status]["content"].as_object().unwrap();
            let described = of_status.get(kind).unwrap_or_else(|| panic!("{path}?{asked} is {kind}"));
            if kind == "application/json" {
                let value = serde_json::from_str(&text).unwrap();
                check_schema(&description, &described["schema"], &value, &path);
            }
        }
        assert!(!content.is_empty(), "{path}");
    }
}

/// Without the token each path answers 401, but for those that the description says need none.
#[test]
fn each_path_asks_for_the_token_as_its_description_says() {
    let description = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    assert_eq!(description["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let job = RunningJob::start_with_token();
    let mut open = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let security = methods["get"].get("security").unwrap_or(&description["security"]);
        let needs_none = security.as_array().unwrap().contains(&json!({}));
        let described = methods["get"]["responses"].get("401");
        assert!(described.is_some() || needs_none, "{path}: 401 is not described");
        let asked = path.replace("{name}", "%3Ci%3Ebalances%3C/i%3E");
        let refused = |accept: &str| {
            let (head, text) = job.get(&asked, accept);
            let is_refused = head.contains(" 401 ");
            assert_eq!(is_refused, head.contains("www-authenticate: bearer"), "{path}: {head}");
            assert!(!text.contains(TOKEN), "{path}: {text}");
            assert!(!is_refused || !text.contains("live"), "{path}: {text}");
            is_refused
        };
        assert_eq!(refused("*/*"), described.is_some(), "{path}");
        if !refused("text/html") {
            open.push(path.as_str());
        }
        let (head, _) = job.get_with(&asked, &format!("Authorization: Bearer {}\r\n", TOKEN.to_uppercase()));
        assert_eq!(head.contains(" 401 "), described.is_some(), "{path}: {head}");
        if !path.ends_with("/changes") {
            let (head, _) = job.get_with(&asked, &format!("Authorization: Bearer {TOKEN}\r\n"));
            assert!(!head.contains(" 401 "), "{path}: {head}");
        }
    }
    assert_eq!(open, ["/", "/healthz", "/readyz"]);
}

/// Parses the labels of a metric's line, which begins behind `{`; returns them, and the text behind `}`.
fn labels(mut text: &str) -> (Vec<(&str, String)>, &str) {
    let mut labels = Vec::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap();
        let (mut value, mut escaped, mut end) = (String::new(), false, 0);
        for (at, letter) in rest.char_indices() {
            match (escaped, letter) {
                (false, '"') => {
                    end = at;
                    break;
                }
                (false, '\\') => escaped = true,
                (true, 'n') => {
                    value.push('\n');
                    escaped = false;
                }
                (_, letter) => {
                    value.push(letter);
                    escaped = false;
                }
            }
        }
        labels.push((name, value));
        text = &rest[end + 1..];
        match text.strip_prefix(',') {
            Some(next) => text = next,
            None => return (labels, text.strip_prefix('}').unwrap()),
        }
    }
}

/// `/metrics` follows the text format and its rules for names: `# HELP`, `# TYPE`, then the lines of that metric alone;
/// counters end with `_total`; times are in seconds and sizes in bytes; no line is there twice.
#[test]
fn metrics_follow_the_rules_of_prometheus() {
    let job = RunningJob::start();
    job.append("live.csv", "a,1,1000");
    job.until("/history", |history| history["samples"].as_array().unwrap().iter().any(|sample| sample["read"] == 1));
    let (head, page) = job.get("/metrics", "*/*");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let fits = |name: &str| {
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.starts_with("tidegate_") && name.chars().all(rest) && !name.contains("__")
    };
    let (mut helped, mut metric, mut kind) = (Vec::new(), "", "");
    let mut series = std::collections::BTreeSet::new();
    let mut sources = std::collections::BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(fits(name) && text.ends_with('.') && !helped.contains(&name), "{line}");
            helped.push(name);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            (metric, kind) = typed.split_once(' ').unwrap();
            assert_eq!(helped.last(), Some(&metric), "{line}");
            assert!(
                ["counter", "gauge"].contains(&kind) && (kind == "counter") == metric.ends_with("_total"),
                "{line}"
            );
            let unit = ["millis", "minutes", "hours", "kib", "_ms"].iter().find(|unit| metric.contains(**unit));
            assert_eq!(unit, None, "{line}");
        } else {
            let (name, rest) = line.split_once('{').unwrap();
            let (labels, value) = labels(rest);
            assert_eq!(name, metric, "{line}");
            assert_eq!([labels[0].0, labels[1].0], ["job", "process"], "{line}");
            let value: f64 = value.trim().parse().unwrap();
            assert!(value.is_finite() && (kind == "gauge" || value >= 0.0), "{line}");
            sources.extend(labels.iter().filter(|(name, _)| *name == "source").map(|(_, source)| source.clone()));
            assert!(series.insert((name, labels)), "twice: {line}");
        }
    }
    assert!(series.len() > 20, "{page}");
    // What is escaped is the name again when it is read.
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), [SILENT, "live"]);
}

/// A browser gets the page, other clients the list of paths; all answers carry the content policy.
#[test]
fn the_page_is_for_clients_that_accept_html_and_refuses_foreign_scripts() {
    let job = RunningJob::start();
    let (_, paths) = job.get("/", "*/*");
    assert!(paths.starts_with("/status, ") && paths.contains("/graph") && paths.contains("/history"), "{paths}");
    let (head, page) = job.get("/", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");
    assert!(head.contains("text/html; charset=utf-8") && page.starts_with("<!doctype html>"), "{head}\n{page}");
    for (path, kind) in [("/", "text/html"), ("/page/main.js", "text/javascript"), ("/page/style.css", "text/css")] {
        let (head, text) = job.get(path, "text/html");
        assert!(
            head.contains(" 200 ") && head.contains(&format!("content-type: {kind}")) && !text.is_empty(),
            "{head}"
        );
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("data:"), "{policy}");
    }
    for path in ["/page/", "/page/x.js", "/page/../main.js"] {
        assert!(job.get(path, "text/html").0.contains(" 404 "), "{path}");
    }
}

/// The script of axe-core; `None` without npm.
fn axe() -> Option<String> {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/axe")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(fs::read_to_string(String::from_utf8(output.stdout).unwrap().trim()).unwrap()),
        Some(4) => {
            browser::skip(&format!("axe-core here: {}", said.trim()));
            None
        }
        code => panic!("no axe-core ({code:?}): {said}"),
    }
}

/// Looks for faults of accessibility, in light and dark, wide and narrow.
fn check_accessibility(browser: &mut Browser, axe: &str) {
    browser.eval(&format!("{axe}; true"));
    for (width, dark) in [(1280, false), (360, true)] {
        browser.look(width, dark);
        let found = "axe.run().then((found) => found.violations.map((fault) => \
                     `${fault.id}: ${fault.help}: ${fault.nodes.map((node) => node.html).join(' ')}`))";
        assert_eq!(browser.eval(found), json!([]), "{width} px, dark: {dark}");
        let wider = "document.documentElement.scrollWidth > innerWidth";
        assert_eq!(browser.eval(wider), false, "the page is wider than {width} px");
    }
    browser.look(1280, false);
}

/// Fails if a name of the job was run, or the page did what the content policy refuses.
fn check_harmless(browser: &mut Browser) {
    assert_eq!(
        browser.eval("[window.hacked ?? null, document.querySelectorAll('img, main b > *, main i').length]"),
        json!([null, 0])
    );
    let is_bad = |event: &&Value| {
        let text = event.to_string();
        event["method"] == "Runtime.exceptionThrown" || text.contains("Content Security Policy")
    };
    let bad: Vec<_> = browser.events.iter().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// The row of a table that has a text in it, as an expression.
fn row(area: &str, text: &str) -> String {
    let text = json!(text);
    format!("[...document.querySelectorAll('{area} tr')].find((row) => row.textContent.includes({text}))")
}

/// The page lists the open windows of the step, with their rows and what they lack, and the window of all time.
fn check_windows(browser: &mut Browser) {
    let cell = |step: &str, window: &str, at: usize| {
        let (step, window) = (json!(step), json!(window));
        format!(
            "[...document.querySelectorAll('#window-rows tr')].find((row) => row.children[0].textContent === {step} && \
             row.children[1].textContent.startsWith({window}))?.children[{at}].textContent"
        )
    };
    let first = "1970-01-01 00:00:00";
    let rows = cell(STEP, first, 2);
    browser.until("the rows of a window", &format!("['2', 'at most 2', 'at most 3'].includes({rows})"));
    browser.until("when it closes", &format!("{}?.startsWith('1970-01-01 00:01:00')", cell(STEP, first, 3)));
    // The stream's watermark is at 1 s.
    browser.until("what it lacks", &format!("{} === '59.0 s of event time'", cell(STEP, first, 4)));
    browser.until("another window", &format!("{}?.endsWith('1')", cell(STEP, "1970-01-01 00:02:00", 2)));
    browser.until("the window of all time", &format!("{} === 'at the end of the stream'", cell("sums", "all time", 3)));
}

/// The page lists the last records that were left out, each with its place and the reason.
fn check_left_out(browser: &mut Browser) {
    let found = |text: &str| row("#left-rows", text);
    browser.until(
        "a late record",
        &format!("{}?.textContent.includes('live.csv, byte ')", found("its time is 1970-01-01T00:00:02")),
    );
    browser
        .until("its number", &format!("{}?.children[1].textContent === '1 late'", found(&format!("late for {STEP}"))));
    browser.until("a rejected record", &format!("{}?.textContent.includes('live.csv, line 6')", found("amount")));
    browser.until("its number", &format!("{}?.children[1].textContent === '1 rejected'", found("rejected by live")));
}

/// Pictures of the page at three widths are kept beside the test programs, for people.
fn take_pictures(browser: &mut Browser) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&folder).unwrap();
    for (name, width, dark) in [("wide", 1280, false), ("middle", 800, true), ("narrow", 360, true)] {
        browser.look(width, dark);
        fs::write(folder.join(format!("{name}.png")), browser.picture()).unwrap();
    }
    browser.look(1280, false);
}

#[test]
fn the_page_shows_a_running_job_and_finds_it_again_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut browser) = Browser::start(folder.path()) else { return };
    let axe = axe();
    let mut job = RunningJob::start();
    job.append("silent.csv", "a,1,1000");
    for line in ["a,1,1000", &format!("{ACCOUNT},5,50000"), "a,2,130000", "a,9,2000", "a,none,2000"] {
        job.append("live.csv", line);
    }
    browser.look(1280, false);
    browser.open(&format!("http://{}/", job.address));
    browser.until("the job's name", "document.querySelector('#job')?.textContent === 'job <b>bold</b>'");
    // The graph has the steps, by their names, with what they lead to.
    let names = "[...document.querySelectorAll('#graph .node-name')].map((name) => name.textContent).sort()";
    let nodes = browser.eval(names);
    assert_eq!(nodes.as_array().unwrap().len(), 7, "{nodes}");
    for name in ["live", "sums", STEP, VIEW, "totals"] {
        assert!(nodes.as_array().unwrap().contains(&json!(name)), "{nodes}");
    }
    assert_eq!(browser.eval("document.querySelectorAll('#graph .edge').length"), 6);
    let label = "document.querySelector('[data-step=\"source live\"]').getAttribute('aria-label')";
    browser.until("what a source leads to", &format!("{label}.includes('leads to window sums')"));
    // The file that nothing comes of is named and coloured; the window waits for it.
    let silent =
        format!("document.querySelector(`#streams [data-key='the file of ${{CSS.escape({})}}']`)", json!(SILENT));
    browser
        .until("the silent file", &format!("{silent}?.querySelector('.word.silent')?.textContent.includes('silent')"));
    browser.until(
        "a sentence",
        "document.querySelector('#why-sentence').textContent.includes('next results wait for the file')",
    );
    let colours =
        "['#streams .word.silent', '#streams td'].map((at) => getComputedStyle(document.querySelector(at)).color)";
    let colours = browser.eval(colours);
    assert_ne!(colours[0], colours[1], "its word has no colour of its own");
    // By keyboard: the cause leads to its lane.
    let name = json!(format!("the file of {SILENT}"));
    let cause =
        format!("[...document.querySelectorAll('#causes button')].find((cause) => cause.textContent === {name})");
    browser.until("its cause", &cause);
    browser.eval(&format!("{cause}.focus()"));
    browser.press("Enter");
    browser.until("its lane", &format!("document.activeElement.dataset.key === {name}"));
    browser.until(
        "late records",
        &format!("{}?.querySelector('.late')?.textContent === '1 late'", row("#step-rows", STEP)),
    );
    browser.until("rejected records", &format!("{}?.children[2].textContent === '1'", row("#source-rows", "live")));
    check_windows(&mut browser);
    check_left_out(&mut browser);
    // Rows of a view, and a change.
    let show = "document.querySelector('#view').value = document.querySelector('#view').options[0].value; \
                document.querySelector('#view-form').requestSubmit()";
    browser.until("the list of views", "document.querySelector('#view').options.length === 1");
    browser.eval(show);
    let balance =
        |account: &str, cents: i64| format!("{}?.children[1].textContent === '{cents}'", row("#view-rows", account));
    browser.until("a row", &balance(ACCOUNT, 5));
    job.append("live.csv", &format!("{ACCOUNT},7,140000"));
    browser.until("its change", &balance(ACCOUNT, 12));
    browser.until("its epoch", "Number(document.querySelector('#view-state').dataset.epoch) > 0");
    browser.until("a chart", "document.querySelector('#charts polyline').getAttribute('points').split(' ').length > 1");
    if let Some(axe) = &axe {
        check_accessibility(&mut browser, axe);
    }
    take_pictures(&mut browser);
    check_harmless(&mut browser);

    job.kill();
    browser.until("the loss", "document.querySelector('#connection').textContent.startsWith('Not reachable since')");
    job.come_back();
    browser.until("the return", "document.querySelector('#connection').textContent === 'Connected'");
    job.append("live.csv", &format!("{ACCOUNT},8,150000"));
    browser.until("a change after the return", &balance(ACCOUNT, 20));
    // Only its key.
    browser.eval("document.querySelector('#key').value = 'a'; document.querySelector('#view-form').requestSubmit()");
    browser.until("the rows of a key", "document.querySelector('#view-rows').children.length === 1");
    check_harmless(&mut browser);
}

/// A person enters the token once; requests and the stream of a view carry it, also after the page is loaded again.
#[test]
fn the_page_asks_for_the_token_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut browser) = Browser::start(folder.path()) else { return };
    let axe = axe();
    let job = RunningJob::start_with_token();
    job.append("live.csv", "a,5,1000");
    browser.look(1280, false);
    browser.open(&format!("http://{}/", job.address));
    browser.until("the question", "document.activeElement?.closest('#token-form') != null");
    browser.until("its words", "document.querySelector('#connection')?.textContent === 'The job asks for a token'");
    assert_eq!(browser.eval("document.querySelectorAll('#token-form').length"), 1);
    if let Some(axe) = &axe {
        check_accessibility(&mut browser, axe);
    }
    let enter = |token: &str| {
        let token = json!(token);
        format!(
            "document.querySelector('#token-form input').value = {token}; \
             document.querySelector('#token-form').requestSubmit()"
        )
    };
    browser.eval(&enter("no, not this one: ü"));
    browser.until("a refusal", "document.querySelector('#connection').textContent === 'The job refuses the token'");
    browser.eval(&enter(&format!(" {TOKEN} ")));
    browser.until("the job's name", "document.querySelector('#job')?.textContent === 'job <b>bold</b>'");
    browser.until("no question", "document.querySelector('#token-form') === null");
    browser.until("its connection", "document.querySelector('#connection').textContent === 'Connected'");
    // Again, with what this tab has kept.
    browser.open(&format!("http://{}/?again", job.address));
    browser.until(
        "the page again",
        "location.search === '?again' && document.querySelector('#job')?.textContent === 'job <b>bold</b>'",
    );
    assert_eq!(browser.eval("document.querySelectorAll('#token-form').length"), 0);
    browser.until("the list of views", "document.querySelector('#view').options.length === 1");
    browser.eval(
        "document.querySelector('#view').value = document.querySelector('#view').options[0].value; \
         document.querySelector('#view-form').requestSubmit()",
    );
    let balance = |cents: i64| format!("{}?.children[1].textContent === '{cents}'", row("#view-rows", "a"));
    browser.until("a row", &balance(5));
    job.append("live.csv", "a,7,2000");
    browser.until("its change", &balance(12));
    check_harmless(&mut browser);
}
