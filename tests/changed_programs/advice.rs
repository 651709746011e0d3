//! The advice of refusals is followed, to the letter, and the job runs: of changed outputs and sources, of results and
//! states that are damaged, of savepoints. Where one advice leads to another refusal, that one's is followed in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidegate::job::Ending;
use tidegate::source::{Options, Source, csv as csv_source, ndjson};
use tidegate::stream::aggregate::Each;
use tidegate::testing::durable::snapshot_epoch;
use tidegate::{Flow, Job, State, Stream, Window, csv};

use super::directories::copy;
use super::{millis, refused};

/// A record of the files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Sale {
    key: u8,
    at_ms: i64,
}

/// A row of the results.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Count {
    key: u8,
    count: i64,
}

/// A row with another column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct WideCount {
    key: u8,
    count: i64,
    end: i64,
}

const COUNT: usize = 80;
const ALL: i64 = COUNT as i64;

/// A version of the program.
#[derive(Clone)]
struct Program {
    /// Names of sources, with their files.
    sources: Vec<(&'static str, &'static str)>,
    source_was: Option<&'static str>,
    /// Name of the output, with its file.
    output: (&'static str, &'static str),
    output_was: Option<&'static str>,
    wide: bool,
    state: &'static str,
    accept_sources: bool,
    drop_output: Option<&'static str>,
    savepoint: Option<&'static str>,
}

/// The program of before.
fn before() -> Program {
    Program {
        sources: vec![("sales", "in.ndjson")],
        source_was: None,
        output: ("counts", "counts.csv"),
        output_was: None,
        wide: false,
        state: "state",
        accept_sources: false,
        drop_output: None,
        savepoint: None,
    }
}

impl Program {
    fn query(&self, directory: &Path) -> impl Fn(&Flow<'_>) + Send + Sync + use<> {
        // Sources are made once: their workers share them.
        let made = |(name, file): &(&'static str, &str)| {
            let path = directory.join(file);
            let source: Box<dyn Source<Item = Sale>> = match file.ends_with("csv") {
                true => Box::new(csv_source::Source::new(path).event_time(|sale: &Sale| sale.at_ms)),
                false => Box::new(ndjson::Source::new(path).event_time(|sale: &Sale| sale.at_ms)),
            };
            (*name, source)
        };
        let sources: Vec<_> = self.sources.iter().map(made).collect();
        let (own, sink) = (self.clone(), csv::Sink::new(directory.join(self.output.1)));
        move |flow: &Flow<'_>| {
            let read = |(number, (name, source)): (usize, &(&str, Box<dyn Source<Item = Sale>>))| {
                own.source_was.filter(|_| number == 0).into_iter().fold(flow.read(name, source), Stream::was)
            };
            let sales = sources.iter().enumerate().map(read).reduce(Stream::concat).unwrap();
            let windows = sales.key_by(|sale| sale.key).window(Window::tumbling(millis(500)));
            let counts = windows.aggregate("steps", Each::count).on_close();
            let name = own.output.0;
            if let Some(old) = own.output_was {
                flow.output_was(name, old);
            }
            if own.wide {
                let wide = counts.map(|row| WideCount { key: row.key, count: row.value, end: row.window.end.millis() });
                wide.write(name, &sink);
            } else {
                counts.map(|row| Count { key: row.key, count: row.value }).write(name, &sink);
            }
        }
    }

    fn job(&self, directory: &Path) -> Job {
        let state = State::at(directory.join(self.state)).snapshot_every(millis(50));
        let state = state.accept_changed_sources(self.accept_sources);
        let state = self.drop_output.into_iter().fold(state, State::drop_output);
        let state =
            self.savepoint.into_iter().fold(state, |state, savepoint| state.from_savepoint(directory.join(savepoint)));
        Job::new("counts").workers(2).epoch(millis(10)).state(state)
    }

    /// Runs the program to the end of its input.
    fn run(&self, directory: &Path) -> Result<Ending, String> {
        let job = self.job(directory).options(Options::default().until_end(true));
        job.run(self.query(directory)).map(|report| report.ending).map_err(|error| error.to_string())
    }

    /// Runs the program to the end of its input, and checks how many records its results have.
    #[track_caller]
    fn runs(&self, directory: &Path, expected: i64) {
        assert_eq!(self.run(directory), Ok(Ending::Complete));
        assert_eq!(counted(&directory.join(self.output.1)), expected);
    }
}

/// Returns the number of records in results.
fn counted(path: &Path) -> i64 {
    let mut reader = ::csv::Reader::from_path(path).unwrap();
    let at = reader.headers().unwrap().iter().position(|column| column == "count").unwrap();
    reader.records().map(|row| row.unwrap()[at].parse::<i64>().unwrap()).sum()
}

fn sales() -> Vec<Sale> {
    let sale = |number: i64| Sale { key: (number % 3) as u8, at_ms: 1_735_689_600_000 + number * 50 };
    (0..COUNT as i64).map(sale).collect()
}

/// Makes a state of two incarnations that were stopped, each of which had read some of the input; then the input is whole.
/// `state-old` is the state as the first one has left it.
fn made() -> TempDir {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed-programs-advice");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let (path, rows) = (&*directory, sales());
        let text =
            |rows: &[Sale]| rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect::<String>();
        for (part, name) in [(COUNT / 3, "state-old"), (COUNT * 2 / 3, "")] {
            fs::write(path.join("in.ndjson"), text(&rows[..part])).unwrap();
            let job = before().job(path);
            let (stop, metrics, query) = (job.stopper(), job.metrics(), before().query(path));
            let running = std::thread::spawn(move || job.run(query));
            let (begun, wanted) = (Instant::now(), (COUNT / 3) as u64);
            while metrics.summary().sources.iter().map(|source| source.read).sum::<u64>() < wanted {
                assert!(begun.elapsed() < Duration::from_secs(60), "it does not come on");
                std::thread::sleep(millis(5));
            }
            stop.stop();
            assert_eq!(running.join().unwrap().unwrap().ending, Ending::Stopped);
            if !name.is_empty() {
                copy(&path.join("state"), &path.join(name));
            }
        }
        fs::write(path.join("in.ndjson"), text(&rows)).unwrap();
        fs::write(path.join("more.ndjson"), text(&rows)).unwrap();
        let csv = rows.iter().map(|row| format!("{},{}\n", row.key, row.at_ms)).collect::<String>();
        fs::write(path.join("in.csv"), format!("key,at_ms\n{csv}")).unwrap();
        directory
    });
    let directory = tempfile::tempdir().unwrap();
    copy(made, directory.path());
    directory
}

/// Returns the files of a directory whose paths have this in them, in order.
fn files(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.display().to_string().contains(part));
    found.sort();
    found
}

fn commit_of(directory: &Path) -> PathBuf {
    files(directory, "counts.csv.commit-").pop().unwrap()
}

#[test]
fn advice_on_changed_outputs_is_followed() {
    let directory = made();
    let (path, anew) = (directory.path(), Program { state: "state-new", ..before() });
    // Other columns.
    let wide = Program { wide: true, ..before() };
    let advice = "write another file under another name, and forget this output with `State::drop_output(\"counts\")`";
    refused(wide.run(path), &["its columns are not those of the rows", advice, "begin a new state, with another file"]);
    let here = made();
    let shown = counted(&here.path().join("counts.csv"));
    assert!(shown > 0 && shown < ALL);
    let other = Program { output: ("wide counts", "wide.csv"), ..wide.clone() };
    Program { drop_output: Some("counts"), ..other.clone() }.runs(here.path(), ALL - shown);
    Program { state: "state-new", ..other }.runs(path, ALL);

    // Another name.
    let renamed = Program { output: ("tallies", "counts.csv"), ..before() };
    let error = renamed.run(path);
    let advice =
        "say `flow.output_was(\"tallies\", \"counts\")` if it is the same output; otherwise name another file, or move";
    refused(error, &["`counts` wrote it, and this is `tallies`", advice]);
    Program { output_was: Some("counts"), ..renamed.clone() }.runs(made().path(), ALL);
    let other = Program { output: ("tallies", "tallies.csv"), ..before() };
    let error = other.run(path);
    refused(
        error,
        &["an output of the state is missing from the query (output counts)", "`State::drop_output(\"counts\")`"],
    );
    Program { drop_output: Some("counts"), ..other }.runs(made().path(), ALL - shown);
    let moved = made();
    fs::remove_file(moved.path().join("counts.csv")).unwrap();
    fs::remove_file(commit_of(moved.path())).unwrap();
    let error = renamed.run(moved.path());
    refused(error, &["an output of the state is missing from the query (output counts)"]);
    Program { drop_output: Some("counts"), ..renamed }.runs(moved.path(), ALL - shown);

    // A file that has other things in it, and one of another state.
    fs::write(path.join("other.csv"), "key,count\n7,7\n").unwrap();
    let there = Program { output: ("counts", "other.csv"), state: "state-third", ..before() };
    refused(
        there.run(path),
        &["it is there already, and was not written with this state; move it away, or name another"],
    );
    Program { output: ("counts", "fresh.csv"), state: "state-fourth", ..before() }.runs(path, ALL);
    fs::remove_file(path.join("other.csv")).unwrap();
    there.runs(path, ALL);
    let theirs = made();
    let anew = Program { state: "state-fifth", ..anew };
    refused(anew.run(theirs.path()), &["it belongs to the state", "name another file, or move it and"]);
    Program { output: ("counts", "another.csv"), ..anew.clone() }.runs(theirs.path(), ALL);
    let away = made();
    refused(anew.run(away.path()), &["name another file, or move it and"]);
    fs::remove_file(commit_of(away.path())).unwrap();
    fs::remove_file(away.path().join("counts.csv")).unwrap();
    anew.runs(away.path(), ALL);
}

/// What is done to results, and what is said of it.
type ResultsCase<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);
/// A directory of the state, which of its files is damaged, and what is said.
type StateCase = (&'static str, fn(&[PathBuf]) -> PathBuf, &'static str);

#[test]
fn advice_on_results_that_are_lost_or_damaged_is_followed() {
    let anew = Program { state: "state-new", ..before() };
    let lose = |path: &Path| fs::remove_file(path).unwrap();
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 3]).unwrap();
    };
    let change = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, &bytes).unwrap();
    };
    let cases: [ResultsCase<'_>; 3] = [
        (
            "lost",
            &lose,
            &["it is missing, and its commit file", "put it back, or remove", "and begin anew, with a new state"],
        ),
        (
            "cut",
            &cut,
            &["were published", "restore it, or move it and", "away and begin anew, with a new state directory"],
        ),
        ("changed", &change, &["has been changed since", "restore it, or move it and", "away and begin anew"]),
    ];
    for (what, damage, said) in cases {
        let directory = made();
        let (path, results) = (directory.path(), directory.path().join("counts.csv"));
        let whole = fs::read(&results).unwrap();
        damage(&results);
        refused(before().run(path), said);
        let copied = tempfile::tempdir().unwrap();
        copy(path, copied.path());
        fs::write(&results, whole).unwrap();
        before().runs(path, ALL);
        let path = copied.path();
        if what != "lost" {
            fs::remove_file(path.join("counts.csv")).unwrap();
        }
        fs::remove_file(commit_of(path)).unwrap();
        anew.runs(path, ALL);
    }
    // Both are gone.
    let directory = made();
    let (path, kept) = (directory.path(), tempfile::tempdir().unwrap());
    copy(path, kept.path());
    fs::remove_file(commit_of(path)).unwrap();
    fs::remove_file(path.join("counts.csv")).unwrap();
    let error = before().run(path);
    refused(error, &["an output is behind the state", "put it back as it was, or begin a new state and new outputs"]);
    anew.runs(path, ALL);
    before().runs(kept.path(), ALL);
}

#[test]
fn advice_on_changed_sources_is_followed() {
    let anew = |program: Program| Program { state: "state-new", output: ("counts", "new.csv"), ..program };
    let renamed = Program { sources: vec![("orders", "in.ndjson")], ..before() };
    let error = renamed.run(made().path());
    let advice =
        ["give the source its name back", "write `.was(\"sales\")`", "begin a new state", "--accept-changed-sources"];
    refused(error, &["a source that the query does not have (source sales)"]);
    refused(renamed.run(made().path()), &advice);
    before().runs(made().path(), ALL);
    Program { source_was: Some("sales"), ..renamed.clone() }.runs(made().path(), ALL);
    anew(renamed.clone()).runs(made().path(), ALL);
    // What is read again is late where windows have closed; elsewhere it counts again.
    let (again, here) = (Program { accept_sources: true, ..renamed }, made());
    let shown = counted(&here.path().join("counts.csv"));
    assert_eq!(again.run(here.path()), Ok(Ending::Complete));
    let all = counted(&here.path().join("counts.csv"));
    assert!(shown > 0 && (ALL..=2 * ALL - shown).contains(&all), "{all} records, of which {shown} had been published");

    let added = Program { sources: vec![("sales", "in.ndjson"), ("more", "more.ndjson")], ..before() };
    let error = added.run(made().path());
    let advice =
        ["if it is new to the query, pass --accept-changed-sources", "write `.was(…)`", "or begin a new state"];
    refused(error, &["a source that the state has not read (source more)"]);
    refused(added.run(made().path()), &advice);
    let here = made();
    assert_eq!(Program { accept_sources: true, ..added.clone() }.run(here.path()), Ok(Ending::Complete));
    anew(added.clone()).runs(made().path(), 2 * ALL);

    // Read under the old name and the new one.
    let both = made();
    let (first, path) = (Program { accept_sources: true, ..added }, both.path());
    let job = first.job(path);
    let (stop, metrics, query) = (job.stopper(), job.metrics(), first.query(path));
    let running = std::thread::spawn(move || job.run(query));
    while metrics.summary().sources.iter().map(|source| source.read).sum::<u64>() < (COUNT + COUNT / 3) as u64 {
        std::thread::sleep(millis(5));
    }
    stop.stop();
    assert_eq!(running.join().unwrap().unwrap().ending, Ending::Stopped);
    let heir = Program { sources: vec![("more", "more.ndjson")], source_was: Some("sales"), ..before() };
    let error = heir.run(path);
    refused(
        error,
        &[
            "under its old and its new name (source more)",
            "remove `.was(\"sales\")`, and pass --accept-changed-sources",
        ],
    );
    let copied = tempfile::tempdir().unwrap();
    copy(path, copied.path());
    let ending = Program { source_was: None, accept_sources: true, ..heir }.run(path);
    assert_eq!(ending, Ok(Ending::Complete));
    // "Or give the source a name that the state has not read": it continues `sales` then, and `more` is read as before.
    let third = vec![("third", "in.ndjson"), ("more", "more.ndjson")];
    let ending = Program { sources: third, source_was: Some("sales"), ..before() }.run(copied.path());
    assert_eq!(ending, Ok(Ending::Complete));

    // Another source under the name.
    let other = Program { sources: vec![("sales", "in.csv")], ..before() };
    let error = other.run(made().path());
    refused(
        error,
        &["a source is not the one that the state has read", "give each source its name back, begin a new state"],
    );
    anew(other).runs(made().path(), ALL);
}

#[test]
fn advice_on_damaged_states_is_followed() {
    let damaged = |part: &str, which: fn(&[PathBuf]) -> PathBuf| {
        let directory = made();
        let found = files(&directory.path().join("state").join(part), "");
        let file = which(&found);
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&file, bytes).unwrap();
        (directory, file, whole)
    };
    let last = |found: &[PathBuf]| found.last().unwrap().clone();
    let newest = |found: &[PathBuf]| {
        let epoch = |path: &PathBuf| snapshot_epoch(path.file_name().unwrap().to_str().unwrap());
        found.iter().max_by_key(|path| epoch(path)).unwrap().clone()
    };
    let claim =
        |found: &[PathBuf]| found.iter().rfind(|path| path.to_string_lossy().ends_with(".claim")).unwrap().clone();
    let restore = "restore the state from a copy, or begin a new state and new outputs";
    let cases: [StateCase; 3] = [("manifests", newest, restore), ("lives", claim, restore), ("journal", last, restore)];
    for (part, which, advice) in cases {
        let (directory, file, whole) = damaged(part, which);
        let path = directory.path();
        match before().run(path) {
            // The journal may have nothing after the snapshot.
            Ok(ending) => assert_eq!((part, ending), ("journal", Ending::Complete)),
            Err(error) => {
                refused(Err(error), &[file.file_name().unwrap().to_str().unwrap(), advice]);
                let anew = Program { state: "state-new", output: ("counts", "new.csv"), ..before() };
                anew.runs(path, ALL);
                fs::write(&file, whole).unwrap();
                before().runs(path, ALL);
            }
        }
    }
    // A copy of the state from before, and outputs from after.
    let directory = made();
    let error = Program { state: "state-old", ..before() }.run(directory.path());
    refused(error, &[restore]);
    before().runs(directory.path(), ALL);
}

#[test]
fn advice_on_damaged_segments_is_followed() {
    let manifests = |path: &Path| files(&path.join("state/manifests"), ".manifest");
    let epoch = |path: &PathBuf| snapshot_epoch(path.file_name().unwrap().to_str().unwrap());
    let mut restored = 0;
    for file in files(&made().path().join("state/segments"), ".segment") {
        let directory = made();
        let (path, name) = (directory.path(), file.file_name().unwrap());
        let file = path.join("state/segments").join(name);
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&file, bytes).unwrap();
        let Err(error) = before().run(path) else { continue };
        let advice = "restore the file from a copy, or begin a new state, with new outputs, at an older snapshot: \
                      `tidegate snapshot export STATE DIR --epoch E`, then --from-savepoint DIR";
        refused(Err(error), &[name.to_str().unwrap(), advice]);
        let copied = tempfile::tempdir().unwrap();
        copy(path, copied.path());
        fs::write(&file, whole).unwrap();
        before().runs(path, ALL);
        let path = copied.path();
        let mut epochs: Vec<_> = manifests(path).iter().filter_map(epoch).collect();
        epochs.sort();
        epochs.pop();
        for epoch in epochs.into_iter().rev() {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
            command.args(["snapshot", "export"]).arg(path.join("state")).arg(path.join("savepoint"));
            let output = command.args(["--epoch", &epoch.0.to_string()]).output().unwrap();
            if !output.status.success() {
                let _ = fs::remove_dir_all(path.join("savepoint"));
                continue;
            }
            let program = Program { state: "state-new", output: ("counts", "new.csv"), ..before() };
            let program = Program { savepoint: Some("savepoint"), ..program };
            assert_eq!(program.run(path), Ok(Ending::Complete));
            assert!(counted(&path.join("new.csv")) > 0);
            restored += 1;
            break;
        }
    }
    assert!(restored > 0, "no older snapshot is without the damaged file");
}

#[test]
fn advice_on_savepoints_is_followed() {
    let directory = made();
    let path = directory.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output =
        command.args(["snapshot", "export"]).arg(path.join("state")).arg(path.join("savepoint")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let used = Program { savepoint: Some("savepoint"), ..before() };
    let error = used.run(path);
    refused(
        error,
        &["only a new state begins with a savepoint", "leave --from-savepoint out to resume", "name another directory"],
    );
    let other = Program { state: "state-new", output: ("counts", "new.csv"), ..used.clone() };
    assert_eq!(other.run(path), Ok(Ending::Complete));
    before().runs(path, ALL);
}
