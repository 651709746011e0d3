//! `tidegate snapshot` is right about a state, while its job runs and after, and a savepoint is as good as the state
//! that it was made from.
//!
//! Rows are compared with totals that are computed here. Every kind of file is damaged, because a tool that reports a
//! sound state is useful only if it also reports a damaged one.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/directories.rs"]
mod directories;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use directories::copy;
use nix::sys::signal::Signal;
use run::{ProgramOutput, Running, check_contains, run, start};
use serde_json::Value;
use tempfile::TempDir;
use transactions::{TOTALS, Transaction, expected_of, ndjson_of, rows_of, same_rows, whole_records, wild};

const ACCOUNT_TOTALS: &str = "account_totals";
const BALANCES: &str = "balances";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const FLAGS: &str = "--ndjson {}/in.ndjson --snapshot-every 40ms --epoch 10ms";

/// A temporary folder.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn typed(&self, line: &str) -> Vec<String> {
        line.split_whitespace().map(|word| word.replace("{}", self.0.path().to_str().unwrap())).collect()
    }

    /// Runs `tidegate snapshot` with these arguments, in which `{}` stands for the folder.
    fn tool(&self, line: &str) -> ProgramOutput {
        run(TIDEGATE, self.typed(&format!("snapshot {line}")))
    }

    fn totals(&self, line: &str) -> ProgramOutput {
        run(ACCOUNT_TOTALS, self.typed(&format!("{FLAGS} {line}")))
    }

    fn start(&self, line: &str) -> Running {
        start(ACCOUNT_TOTALS, self.typed(&format!("{FLAGS} {line}")))
    }

    fn append(&self, rows: &[Transaction]) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path("in.ndjson")).unwrap();
        file.write_all(ndjson_of(rows).as_bytes()).unwrap();
    }

    fn snapshots(&self, state: &str) -> Vec<Value> {
        let ended = self.tool(&format!("ls {{}}/{state} --json"));
        ended.code(0).stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the line of `inspect` with this beginning.
    fn told(&self, state: &str, beginning: &str) -> String {
        let ended = self.tool(&format!("inspect {{}}/{state}"));
        let line = ended.code(0).stdout().lines().find(|line| line.starts_with(beginning));
        line.unwrap_or_else(|| panic!("no line begins with {beginning}: {}", ended.stdout())).to_owned()
    }

    /// Returns the time at or before which windows had closed at the newest snapshot, formatted as in results.
    fn closed(&self, state: &str) -> String {
        self.told(state, "step totals: ").rsplit_once("closed through ").unwrap().1.to_owned()
    }

    /// Returns the rows of a snapshot by window end and account: count, sum, least and greatest amount.
    fn rows(&self, state: &str) -> BTreeMap<(String, String), [i128; 4]> {
        let ended = self.tool(&format!("inspect {{}}/{state} totals"));
        let mut rows = BTreeMap::new();
        for line in ended.code(0).stdout().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let parts = line["parts"].as_array().unwrap().iter().map(|part| {
                assert!(part["from"].as_u64().unwrap() < part["to"].as_u64().unwrap());
                numbers(part)
            });
            let sum = parts.reduce(add).unwrap();
            let key = (text(&line["window_end"]), text(&line["key"]));
            assert!(rows.insert(key, sum).is_none(), "a key is there twice: {line}");
        }
        rows
    }
}

/// Returns the numbers of a part, without the nesting of its aggregates.
fn numbers(part: &Value) -> [i128; 4] {
    fn collect(value: &Value, into: &mut Vec<i128>) {
        match value {
            Value::Number(number) => into.push(number.as_i64().unwrap().into()),
            Value::String(text) => into.push(text.parse().unwrap()),
            Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
            Value::Object(fields) => fields.values().for_each(|value| collect(value, into)),
            _ => {}
        }
    }
    let mut found = vec![part["count"].as_i64().unwrap().into()];
    collect(&part["sum"], &mut found);
    found.try_into().unwrap_or_else(|found| panic!("{found:?} of {part}"))
}

fn add(a: [i128; 4], b: [i128; 4]) -> [i128; 4] {
    [a[0] + b[0], a[1] + b[1], a[2].min(b[2]), a[3].max(b[3])]
}

/// Returns the expected rows of a snapshot that has all these records.
fn open_rows(rows: &[Transaction], closed: &str) -> BTreeMap<(String, String), [i128; 4]> {
    let later = later_rows(rows, closed).into_iter();
    let number = |text: &String| text.parse().unwrap();
    later.map(|row| ((row[1].clone(), row[2].clone()), [&row[3], &row[4], &row[5], &row[6]].map(number))).collect()
}

/// Returns the totals of windows that end after a time.
fn later_rows(rows: &[Transaction], closed: &str) -> Vec<Vec<String>> {
    let all = expected_of(rows).rows();
    all.into_iter().filter(|row| closed == "before all events" || row[1].as_str() > closed).collect()
}

/// Waits until the newest snapshot has all of the input.
fn until_read(folder: &Folder, running: &mut Running) {
    let length = fs::metadata(folder.path("in.ndjson")).unwrap().len();
    running.wait_until("snapshot of all", |_| {
        let ended = folder.tool("inspect {}/state");
        let offset = format!("offset {length},");
        (ended.status.success() && ended.stdout().contains(&offset)).then_some(())
    });
}

/// Runs the query over the rows, with snapshots after each of several chunks, and stops it.
fn stopped(folder: &Folder, rows: &[Transaction]) {
    folder.append(&[]);
    let mut running = folder.start("--out {}/out.csv --state {}/state");
    for piece in rows.chunks(rows.len() / 4 + 1) {
        folder.append(piece);
        until_read(folder, &mut running);
    }
    running.signal(Signal::SIGTERM);
    running.end().code(143);
}

/// Returns all files below a directory.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_state_is_read_while_its_job_runs() {
    let folder = Folder::new();
    let rows = wild(31, 6_000);
    folder.append(&rows[..1_000]);
    let mut running = folder.start("--out {}/out.csv --state {}/state --keep-snapshots 1 -w 2");
    until_read(&folder, &mut running);
    for (number, piece) in rows[1_000..].chunks(500).enumerate() {
        folder.append(piece);
        let verified = folder.tool("verify {}/state");
        assert!(verified.code(0).stdout().contains("all are as they were written"), "{}", verified.stdout());
        assert!(folder.snapshots("state").len() > 1);
        folder.rows("state");
        folder.tool(&format!("export {{}}/state {{}}/savepoint-{number}")).code(0);
        folder.tool(&format!("verify {{}}/savepoint-{number}")).code(0);
        folder.tool("export {}/state --csv {}/rows.csv").code(0);
    }
    let error = folder.tool("prune {}/state --keep 1");
    check_contains(error.error(1), &["the state is in use", "process ", "stop the job first"]);
    running.signal(Signal::SIGTERM);
    running.end().code(143);
}

#[test]
fn what_is_told_of_a_state_is_what_is_in_it() {
    let folder = Folder::new();
    let rows = wild(32, 4_000);
    stopped(&folder, &rows);
    let mut lines = folder.snapshots("state");
    let whole = lines.pop().unwrap();
    let number = |line: &Value, name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name} of {line}"));
    assert_eq!((lines.len(), number(&whole, "snapshots")), (3, 3));
    assert!(lines.iter().all(|line| line["ended"] == false && number(line, "epoch") % 2 == 0));
    assert!(lines.is_sorted_by_key(|line| number(line, "epoch")));
    assert_eq!((number(&whole["last_life"], "life"), number(&lines[0], "life")), (1, 1));
    let sizes =
        |below: &str| files(&folder.path("state").join(below)).iter().map(|f| f.metadata().unwrap().len()).sum();
    let (segments, journal): (u64, u64) = (sizes("segments"), sizes("journal"));
    assert_eq!(number(&whole, "journal_bytes"), journal);
    assert!(number(&whole, "bytes") <= segments && number(&lines[2], "bytes") > 0);
    let shown = folder.tool("ls {}/state");
    assert_eq!(shown.code(0).stdout().lines().count(), 5);

    let closed = folder.closed("state");
    let expected = open_rows(&rows, &closed);
    assert!(expected.len() > 3, "the data is too tame");
    assert_eq!(folder.rows("state"), expected);
    let ((_, account), _) = expected.first_key_value().unwrap();
    let one = folder.tool("inspect {}/state totals --limit 1");
    let one: Value = serde_json::from_str(one.code(0).stdout()).unwrap();
    assert_eq!(one["key"].as_str().unwrap(), account);
    let state = folder.path("state").display().to_string();
    let of_key = run(TIDEGATE, ["snapshot", "inspect", &state, "totals", "--key", account]);
    assert_eq!(of_key.code(0).stdout().lines().count(), expected.keys().filter(|key| key.1 == *account).count());

    folder.tool("export {}/state --csv {}/rows.csv --step totals").code(0);
    folder.tool("export {}/state --ndjson {}/rows.ndjson").code(0);
    let records = whole_records(&fs::read_to_string(folder.path("rows.csv")).unwrap()).unwrap();
    assert_eq!(records[0][..4], ["window_end", "key", "from", "to"]);
    let mut sums = BTreeMap::new();
    for record in &records[1..] {
        let numbers: Vec<i128> =
            record[4..].iter().filter(|cell| !cell.is_empty()).map(|c| c.parse().unwrap()).collect();
        let numbers: [i128; 4] = numbers.try_into().unwrap();
        let key = (record[0].clone(), record[1].clone());
        sums.entry(key).and_modify(|sum| *sum = add(*sum, numbers)).or_insert(numbers);
    }
    assert_eq!(sums, expected);
    let lines = fs::read_to_string(folder.path("rows.ndjson")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["key"]), (records.len() - 1, &Value::String(records[1][1].clone())));
}

#[test]
fn a_damaged_file_is_named_whatever_it_is() {
    let folder = Folder::new();
    stopped(&folder, &wild(33, 3_000));
    let verified = folder.tool("verify {}/state");
    check_contains(
        verified.code(0).stdout(),
        &["3 snapshots", "segments of", "goes on from epoch", "all are as they were"],
    );
    let mut damaged = 0;
    for file in files(&folder.path("state")) {
        let name = file.strip_prefix(folder.path("state")).unwrap().to_str().unwrap().to_owned();
        // The lock contains nothing that counts.
        if name == "LOCK" {
            continue;
        }
        copy(&folder.path("state"), &folder.path("copy"));
        let target = folder.path("copy").join(&name);
        let good = fs::read(&target).unwrap();
        for at in [0, 12, good.len() / 2] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&target, &bad).unwrap();
            let ended = folder.tool("verify {}/copy");
            // Damage in a frame that was never synced looks like a torn tail: that is reported too.
            let is_torn = name.starts_with("journal/") && at > 12 && ended.status.code() == Some(0);
            let said = format!("{}{}", ended.stdout(), ended.stderr);
            assert!(said.contains(&name) || name == "STATE", "{name}, byte {at}: {said}");
            assert!(is_torn || ended.status.code() == Some(1), "{name}, byte {at}: {said}");
        }
        fs::remove_file(&target).unwrap();
        if name.starts_with("segments/") {
            check_contains(&folder.tool("verify {}/copy").code(1).stderr, &[&name, "1 is not"][..1]);
        }
        fs::remove_dir_all(folder.path("copy")).unwrap();
        damaged += 1;
    }
    assert!(damaged > 6, "only {damaged} files were tried");
}

#[test]
fn a_lost_end_of_a_journal_is_told_by_what_an_output_has_published() {
    let folder = Folder::new();
    let rows = wild(37, 6_000);
    folder.append(&rows[..3_000]);
    let flags = "--ndjson {}/in.ndjson --epoch 10ms --snapshot-every 1h --out {}/out.csv --state {}/state -w 2";
    let mut running = start(ACCOUNT_TOTALS, folder.typed(flags));
    let longer = |than: u64| fs::metadata(folder.path("out.csv")).is_ok_and(|rows| rows.len() > than).then_some(());
    running.wait_until("results", |_| longer(10_000));
    // An epoch's rows follow the record that the epoch before is published.
    let before = fs::metadata(folder.path("out.csv")).unwrap().len();
    folder.append(&rows[3_000..]);
    running.wait_until("more results", |_| longer(before));
    running.kill();
    running.end_or_killed();
    let verify = "verify {}/state --output {}/out.csv";
    check_contains(folder.tool(verify).code(0).stdout(), &["all are as they were"]);
    let results = fs::read(folder.path("out.csv")).unwrap();
    let mut changed = results.clone();
    changed[results.len() / 4] ^= 4;
    fs::write(folder.path("out.csv"), changed).unwrap();
    check_contains(&folder.tool(verify).code(1).stderr, &["out.csv", "has been changed since"]);
    fs::write(folder.path("out.csv"), results).unwrap();
    let journal = folder.path("state/journal/1-0-0.journal");
    fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(40).unwrap();
    check_contains(
        folder.tool("verify {}/state").code(0).stdout(),
        &["do not count, unless an output has published them"],
    );
    check_contains(&folder.tool(verify).code(1).stderr, &["1-0-0.journal", "which the output totals has published"]);
    // A start of the job gets the same error.
    let again = run(ACCOUNT_TOTALS, folder.typed(&flags.replace("-w 2", "-w 1")));
    check_contains(again.error(1), &["1-0-0.journal", "which the output totals has published"]);
    check_contains(
        folder.tool("verify {}/state --output {}/in.ndjson").error(2),
        &["no results file of a job with state"],
    );
}

#[test]
fn a_savepoint_goes_on_as_its_state_does_on_any_number_of_workers() {
    let folder = Folder::new();
    let rows = wild(34, 6_000);
    stopped(&folder, &rows[..3_000]);
    let closed = folder.closed("state");
    let before = rows_of(&folder.path("out.csv"), &TOTALS);
    folder.tool("export {}/state {}/savepoint").code(0);
    assert_eq!(folder.rows("savepoint"), folder.rows("state"));
    folder.append(&rows[3_000..]);
    // The original state.
    folder.totals("--out {}/out.csv --state {}/state --until-end -w 2").code(0);
    let all = expected_of(&rows).rows();
    let went_on = rows_of(&folder.path("out.csv"), &TOTALS);
    same_rows(&went_on, &all);
    let remaining = later_rows(&rows, &closed);
    same_rows(&went_on[before.len()..], &remaining);
    for workers in [1, 2, 3] {
        let line = format!("--out {{}}/new-{workers}.csv --state {{}}/new-{workers} --from-savepoint {{}}/savepoint");
        folder.totals(&format!("{line} --until-end -w {workers}")).code(0);
        same_rows(&rows_of(&folder.path(&format!("new-{workers}.csv")), &TOTALS), &remaining);
        check_contains(folder.tool(&format!("verify {{}}/new-{workers}")).code(0).stdout(), &["all are as they were"]);
    }
}

#[test]
fn a_savepoint_of_a_running_job_is_whole_and_can_be_gone_on_from_again_and_again() {
    let folder = Folder::new();
    let rows = wild(35, 6_000);
    folder.append(&rows[..2_000]);
    let mut running = folder.start("--out {}/out.csv --state {}/state -w 2");
    until_read(&folder, &mut running);
    folder.append(&rows[2_000..4_000]);
    folder.tool("export {}/state {}/first").code(0);
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    // A state that began with a savepoint is itself stopped, exported and used as a savepoint.
    let closed = folder.closed("first");
    let mut running = folder.start("--out {}/second.csv --state {}/second --from-savepoint {}/first -w 3");
    running.wait_until("snapshot", |_| {
        let told = folder.tool("inspect {}/second");
        let offset = format!("offset {},", fs::metadata(folder.path("in.ndjson")).unwrap().len());
        (told.status.success() && told.stdout().contains(&offset)).then_some(())
    });
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    folder.tool("export {}/second {}/third").code(0);
    let closed_then = folder.closed("third");
    folder.append(&rows[4_000..]);
    folder.totals("--out {}/second.csv --state {}/second --until-end").code(0);
    same_rows(&rows_of(&folder.path("second.csv"), &TOTALS), &later_rows(&rows, &closed));
    folder.totals("--out {}/fourth.csv --state {}/fourth --from-savepoint {}/third --until-end").code(0);
    same_rows(&rows_of(&folder.path("fourth.csv"), &TOTALS), &later_rows(&rows, &closed_then));
}

/// Returns the rows of a live collection that remain after all changes.
fn live_rows(path: &Path) -> BTreeMap<Vec<String>, i64> {
    let mut rows = BTreeMap::new();
    for mut row in rows_of(path, &["holder", "balance_cents", "diff"]) {
        let diff: i64 = row.pop().unwrap().parse().unwrap();
        *rows.entry(row).or_default() += diff;
    }
    rows.retain(|_, count| *count != 0);
    rows
}

#[test]
fn a_live_collection_starts_whole_from_a_savepoint() {
    let folder = Folder::new();
    let rows = wild(39, 4_000);
    folder.append(&rows[..2_000]);
    let mut running = start(BALANCES, folder.typed(&format!("{FLAGS} --out {{}}/out.csv --state {{}}/state")));
    until_read(&folder, &mut running);
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    folder.tool("export {}/state {}/savepoint").code(0);
    folder.append(&rows[2_000..]);
    run(BALANCES, folder.typed("--ndjson {}/in.ndjson --out {}/plain.csv --until-end")).code(0);
    let expected = live_rows(&folder.path("plain.csv"));
    assert!(expected.len() > 50 && expected.values().all(|count| *count == 1));
    for workers in [1, 2] {
        let line =
            format!("{FLAGS} --until-end -w {workers} --state {{}}/new-{workers} --from-savepoint {{}}/savepoint");
        run(BALANCES, folder.typed(&format!("{line} --out {{}}/new-{workers}.csv"))).code(0);
        assert_eq!(live_rows(&folder.path(&format!("new-{workers}.csv"))), expected);
    }
}

#[test]
fn only_a_new_state_with_new_outputs_begins_with_a_whole_savepoint() {
    let folder = Folder::new();
    let rows = wild(36, 3_000);
    stopped(&folder, &rows);
    folder.tool("export {}/state {}/savepoint").code(0);
    let closed = folder.closed("savepoint");
    let refused = |line: &str, parts: &[&str]| {
        let ended = folder.totals(&format!("{line} --until-end"));
        check_contains(ended.error(1), parts);
    };
    let used = ["only a new state", "leave --from-savepoint out"];
    refused("--out {}/new.csv --state {}/state --from-savepoint {}/savepoint", &used);
    refused("--out {}/new.csv --state {}/new --from-savepoint {}/nowhere", &["no savepoint here", "nowhere"]);
    refused("--out {}/new.csv --state {}/savepoint", &["this is a savepoint", "--from-savepoint"]);
    refused("--out {}/out.csv --state {}/new --from-savepoint {}/savepoint", &["out.csv", "belongs to the state"]);
    check_contains(folder.tool("export {}/state {}/savepoint").error(1), &["savepoint", "empty or not there"]);

    // A damaged segment, and an incomplete savepoint.
    let segment = files(&folder.path("savepoint").join("segments")).pop().unwrap();
    let good = fs::read(&segment).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&segment, &bad).unwrap();
    refused("--out {}/new.csv --state {}/new --from-savepoint {}/savepoint", &["segment is damaged"]);
    fs::remove_file(&segment).unwrap();
    refused("--out {}/new.csv --state {}/new --from-savepoint {}/savepoint", &["segment", "missing"]);
    fs::write(&segment, &good).unwrap();
    copy(&folder.path("savepoint"), &folder.path("unfinished"));
    fs::remove_file(folder.path("unfinished").join("SAVEPOINT")).unwrap();
    refused("--out {}/new.csv --state {}/new --from-savepoint {}/unfinished", &["no savepoint here"]);

    // After these failures the state still counts as new.
    folder.totals("--out {}/new.csv --state {}/new --from-savepoint {}/savepoint --until-end").code(0);
    same_rows(&rows_of(&folder.path("new.csv"), &TOTALS), &later_rows(&rows, &closed));
    folder.tool("export {}/new {}/ended").code(0);
    refused("--out {}/more.csv --state {}/more --from-savepoint {}/ended", &["had come to its end"]);
}

#[test]
fn older_snapshots_are_removed_with_what_only_they_named() {
    let folder = Folder::new();
    let rows = wild(37, 4_000);
    stopped(&folder, &rows[..2_000]);
    let newest = folder.snapshots("state")[2]["epoch"].clone();
    let (before, open) = (files(&folder.path("state")).len(), folder.rows("state"));
    let pruned = folder.tool("prune {}/state --keep 1");
    assert!(pruned.code(0).stdout().starts_with("2 of 3 snapshots removed"), "{}", pruned.stdout());
    assert!(files(&folder.path("state")).len() <= before - 2);
    let left = folder.snapshots("state");
    assert_eq!((left.len(), &left[0]["epoch"]), (2, &newest));
    assert_eq!(folder.rows("state"), open);
    folder.tool("verify {}/state").code(0);
    folder.append(&rows[2_000..]);
    folder.totals("--out {}/out.csv --state {}/state --until-end").code(0);
    same_rows(&rows_of(&folder.path("out.csv"), &TOTALS), &expected_of(&rows).rows());
    assert!(folder.tool("prune {}/state --keep 7").code(0).stdout().starts_with("0 of "));
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let folder = Folder::new();
    folder.append(&wild(38, 100));
    for (line, part) in [
        ("", "Usage"),
        ("ls", "<STATE>"),
        ("prune {}/state", "--keep"),
        ("prune {}/state --keep 0", "--keep"),
        ("export {}/state", "<DIR>"),
        ("export {}/state {}/a --csv {}/b", "--csv"),
        ("inspect {}/state --key a", "STEP"),
        ("inspect {}/state totals --epoch now", "--epoch"),
    ] {
        assert!(folder.tool(line).code(2).stderr.contains(part), "{line}: {}", folder.tool(line).stderr);
    }
    for line in ["ls", "verify", "inspect", "prune --keep 1"] {
        check_contains(folder.tool(&format!("{line} {{}}/nothing")).error(1), &["there is no state here", "nothing"]);
    }
    assert!(!folder.path("nothing").exists());
    folder.totals("--out {}/out.csv --state {}/state --until-end").code(0);
    let known = folder.tool("inspect {}/state other");
    check_contains(known.error(1), &["no step `other`", "there are totals"]);
    check_contains(
        folder.tool("inspect {}/state totals --epoch 7").error(1),
        &["no snapshot of epoch 7", "there are "],
    );
    for command in ["", "ls", "inspect", "verify", "export", "prune"] {
        let help = folder.tool(&format!("{command} --help"));
        assert!(help.code(0).stdout().contains("Examples:\n  tidegate snapshot "), "{command}");
    }
}

#[test]
fn a_program_says_beforehand_whether_it_goes_on_with_a_state() {
    let folder = Folder::new();
    stopped(&folder, &wild(32, 400));
    let before: Vec<_> =
        files(&folder.path("state")).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    // The tool runs as the query whose name it has.
    for name in [ACCOUNT_TOTALS, "account_sessions"] {
        std::os::unix::fs::symlink(TIDEGATE, folder.path(name)).unwrap();
    }
    let check = |program: &str, line: &str| {
        let program = folder.path(program).display().to_string();
        folder.tool(&format!("check {{}}/state -- {program} {FLAGS} --out {{}}/out.csv --state {{}}/state {line}"))
    };
    let fits = check(ACCOUNT_TOTALS, "");
    check_contains(fits.code(0).stdout(), &["step totals: goes on", "the program goes on with the state"]);
    let other = check("account_sessions", "");
    check_contains(other.code(1).stdout(), &["(output totals)", "--drop-output", "the start would be refused"]);
    let other = check("account_sessions", "--drop-output totals");
    check_contains(other.code(1).stdout(), &["the state has rows of a step", "(step totals)", "--drop-step"]);
    let dropped = check("account_sessions", "--drop-step totals --drop-output totals");
    check_contains(
        dropped.code(0).stdout(),
        &["step totals: its rows are dropped", "is new, and begins with the records"],
    );
    // What is no program of ours, or does not get to the job, says so.
    check_contains(folder.tool("check {}/state -- /bin/true").error(1), &["the program did not answer"]);
    check_contains(check(ACCOUNT_TOTALS, "--no-such-flag").error(1), &["the program did not answer", "--help"]);
    folder.tool("check {}/state").code(2);
    let after: Vec<_> = files(&folder.path("state")).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    assert!(before == after, "the state has changed");
}
