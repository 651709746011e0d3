//! The query programs do what their `--help` says, seen from outside: files in; files, figures and exit codes out.
//! Outputs are compared, row for row, with totals that are computed here from the input, so that an error in the
//! engine, in a format or in a flag is found.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use run::{ProgramOutput, Running, check_contains, run, start, start_with};
use tempfile::TempDir;
use transactions::{
    COLUMNS, Expected, START_MS, TOTALS, Transaction, csv_line, csv_of, expected_of, json_of, ndjson_of, parse_csv,
    quoted, rows_of, same_rows, sorted_by_window, tidy, whole_records, wild,
};

const ACCOUNT_TOTALS: &str = "account_totals";
const BALANCES: &str = "balances";

/// A temporary folder.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Creates a file with this text; returns its path.
    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), text).unwrap();
        self.at(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// Runs `account_totals` with these arguments, in which `{}` stands for the folder.
#[track_caller]
fn totals(folder: &Folder, line: &str) -> ProgramOutput {
    run(ACCOUNT_TOTALS, typed(folder, line))
}

fn typed(folder: &Folder, line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", folder.0.path().to_str().unwrap())).collect()
}

/// Fails unless the summary's figures are the expected ones, and add up.
#[track_caller]
fn check_figures(ended: &ProgramOutput, expected: &Expected, rejected: u64) {
    let (late, rows) = (expected.late.len() as u64, expected.totals.len() as u64);
    let accepted = expected.counted + late;
    assert_eq!(ended.figures("transactions: "), [accepted + rejected, accepted, rejected]);
    assert_eq!(ended.figures("totals: ")[..4], [accepted, expected.counted, late, rows]);
    let written = ended.stderr.lines().rfind(|line| line.starts_with("totals: ") && line.contains(" rows written"));
    assert!(written.unwrap().starts_with(&format!("totals: {rows} rows written in ")), "{}", ended.stderr);
}

/// Fails unless a results file is the expected one.
#[track_caller]
fn check_totals(path: &Path, expected: &Expected) {
    let rows = rows_of(path, &TOTALS);
    same_rows(&rows, &expected.rows());
    sorted_by_window(&rows);
}

#[test]
fn totals_of_a_csv_file_are_those_of_its_rows_on_any_number_of_workers() {
    let folder = Folder::new();
    let rows = wild(1, 15_000);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    let expected = expected_of(&rows);
    assert!(expected.late.len() > 100, "the data is too tame");
    // With little memory, readers wait for one another and for the sinks.
    for flags in ["-w 1", "-w 2", "-w 4", "-w 1 --in-flight 1MiB --epoch 5ms", "-w 3 --in-flight 1MiB --epoch 5ms"] {
        let line = "--csv {}/in.csv --out {}/out.csv --late {}/late.csv --until-end";
        let ended = totals(&folder, &format!("{line} {flags}"));
        ended.code(0);
        assert!(ended.stdout.is_empty());
        check_totals(&folder.path("out.csv"), &expected);
        check_figures(&ended, &expected, 0);
        let late: Vec<_> = expected.late.iter().map(|row| COLUMNS.map(|name| row.column(name)).to_vec()).collect();
        same_rows(&rows_of(&folder.path("late.csv"), &COLUMNS), &late);
    }
}

#[test]
fn totals_of_an_ndjson_file_are_those_of_its_lines_on_any_number_of_workers() {
    let folder = Folder::new();
    let rows = wild(2, 15_000);
    folder.file("in.ndjson", ndjson_of(&rows));
    let expected = expected_of(&rows);
    for workers in [1, 2, 4] {
        let line = "--ndjson {}/in.ndjson --out {}/out.ndjson --late {}/late.ndjson --until-end";
        let ended = totals(&folder, &format!("{line} -w {workers}"));
        check_figures(ended.code(0), &expected, 0);
        let text = fs::read_to_string(folder.path("out.ndjson")).unwrap();
        // Keys in the order of the columns, numbers as numbers, no spaces.
        let mut lines: Vec<String> = (expected.totals.iter())
            .map(|total| {
                let [start, end, account, count, sum, min, max] = total.fields();
                let account = serde_json::to_string(&account).unwrap();
                format!(r#"{{"window_start":"{start}","window_end":"{end}","account":{account},"count":{count},"#)
                    + &format!(r#""sum_cents":{sum},"min_cents":{min},"max_cents":{max}}}"#)
            })
            .collect();
        assert!(text.ends_with("}\n") && !text.contains('\r'));
        let mut found: Vec<&str> = text.lines().collect();
        lines.sort();
        found.sort_unstable();
        assert_eq!(found, lines);
        let mut late: Vec<String> = expected.late.iter().map(json_of).collect();
        let text = fs::read_to_string(folder.path("late.ndjson")).unwrap();
        let mut found: Vec<&str> = text.lines().collect();
        late.sort();
        found.sort_unstable();
        assert_eq!(found, late);
    }
}

/// Returns the rows of a file of totals, sorted.
fn records_between(path: &Path, between: u8) -> Vec<Vec<String>> {
    let mut reader = ::csv::ReaderBuilder::new().delimiter(between).from_path(path).unwrap();
    let rows = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect());
    let mut rows: Vec<Vec<String>> = rows.collect();
    rows.sort();
    rows
}

/// Returns the rows of expected totals, sorted.
fn records_between_of(expected: &Expected) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = expected.totals.iter().map(|total| total.fields().to_vec()).collect();
    rows.sort();
    rows
}

#[test]
fn fields_may_be_between_other_characters_than_commas() {
    let folder = Folder::new();
    let rows = wild(11, 1_500);
    let expected = expected_of(&rows);
    for (flag, between) in [(";", b';'), ("tab", b'\t'), ("|", b'|')] {
        let mut text = ::csv::WriterBuilder::new().delimiter(between).from_writer(Vec::new());
        let columns = ["note;,", "at_ms", "currency", "amount_cents", "merchant", "account", "id"];
        text.write_record(columns).unwrap();
        for row in &rows {
            text.write_record(columns.map(|name| if name == "note;," { "a\t|".into() } else { row.column(name) }))
                .unwrap();
        }
        folder.file("in.csv", text.into_inner().unwrap());
        let line = "--csv {}/in.csv --out {}/out.csv --until-end -w 2";
        let ended = totals(&folder, &format!("{line} --delimiter {flag} --out-delimiter ,"));
        check_figures(ended.code(0), &expected, 0);
        check_totals(&folder.path("out.csv"), &expected);
        // What is written has the same character, unless it is to have another one.
        let files = "--late {}/late.csv --rejects {}/rejects.csv";
        totals(&folder, &format!("{line} --delimiter {flag} {files}")).code(0);
        let columns = |name: &str| {
            let mut rows = ::csv::ReaderBuilder::new().delimiter(between).from_path(folder.path(name)).unwrap();
            rows.headers().unwrap().len()
        };
        assert_eq!(["out.csv", "late.csv", "rejects.csv"].map(columns), [7, 6, 8], "{flag}");
        assert_eq!(records_between(&folder.path("out.csv"), between), records_between_of(&expected));
        let printed = totals(&folder, &format!("--csv {{}}/in.csv --until-end --delimiter {flag}"));
        assert!(printed.code(0).stdout().starts_with(&format!("window_start{}window_end", char::from(between))));
        check_contains(totals(&folder, line).error(1), &["in.csv", "lacks the columns `id`", "--delimiter"]);
    }
    for flags in ["--delimiter ;;", "--delimiter \"", "--delimiter 1", "--out-delimiter x"] {
        totals(&folder, &format!("--csv {{}}/in.csv --until-end {flags}")).code(2);
    }
    folder.file("in.ndjson", ndjson_of(&rows));
    for (flags, flag) in [
        ("--ndjson {}/in.ndjson --out {}/new.ndjson --delimiter ;", "--delimiter"),
        ("--ndjson {}/in.ndjson --out {}/new.ndjson --out-delimiter ;", "--out-delimiter"),
        ("--ndjson {}/in.ndjson --out {}/new.csv --delimiter ; --out-delimiter |", "--delimiter"),
        ("--csv {}/in.csv --out {}/new.ndjson --late {}/new-late.ndjson --out-delimiter ;", "--out-delimiter"),
        ("--brokers 127.0.0.1:1 --out {}/new.ndjson --delimiter ;", "--delimiter"),
    ] {
        let ended = totals(&folder, &format!("{flags} --until-end"));
        check_contains(ended.error(2), &[&*format!("{flag}: nothing"), "leave it out"]);
        assert!(!folder.path("new.ndjson").exists() && !folder.path("new.csv").exists(), "{flags}");
    }
    // Of what is JSON alone, a result that is CSV is enough.
    totals(&folder, "--ndjson {}/in.ndjson --out {}/new.csv --delimiter ; --until-end").code(0);
    assert_eq!(records_between(&folder.path("new.csv"), b';'), records_between_of(&expected));
}

#[test]
fn columns_may_be_in_any_order_with_others_between_them() {
    let folder = Folder::new();
    let rows = wild(3, 1_500);
    let expected = expected_of(&rows);
    for (number, columns) in [
        &["at_ms", "currency", "amount_cents", "merchant", "account", "id"][..],
        &["note", "amount_cents", "more notes", "at_ms", "id", "account", "x,y", "currency", "merchant", "z"],
    ]
    .iter()
    .enumerate()
    {
        folder.file("in.csv", csv_of(&rows, columns));
        let workers = number + 1;
        let ended = totals(&folder, &format!("--csv {{}}/in.csv --out {{}}/out.csv --until-end -w {workers}"));
        check_figures(ended.code(0), &expected, 0);
        check_totals(&folder.path("out.csv"), &expected);
    }
    // The same as JSON objects; fields that are not read may have any type.
    let line = |row: &Transaction| {
        let rest = json_of(row).split_off(1);
        format!("{{\"extra\": {{\"a\": [1, null, \"\\n\"]}}, \t{rest}\r\n")
    };
    folder.file("in.ndjson", rows.iter().map(line).collect::<String>());
    let ended = totals(&folder, "--ndjson {}/in.ndjson --out {}/out.csv --until-end");
    check_figures(ended.code(0), &expected, 0);
    check_totals(&folder.path("out.csv"), &expected);
}

#[test]
fn more_disorder_is_allowed_when_it_is_asked_for() {
    let folder = Folder::new();
    let rows = wild(4, 3_000);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    for (flag, disorder_ms) in [("0s", 0), ("1500ms", 1_500), ("30s", 30_000), ("1h", 3_600_000)] {
        let expected = transactions::expected([&rows[..]], disorder_ms);
        let line = format!("--csv {{}}/in.csv --out {{}}/out.csv --until-end --out-of-order {flag}");
        check_figures(totals(&folder, &line).code(0), &expected, 0);
        check_totals(&folder.path("out.csv"), &expected);
    }
}

/// Literals, so that an error which this test would share with the engine is found.
#[test]
fn results_look_as_they_are_documented() {
    let folder = Folder::new();
    let head = "id,account,merchant,amount_cents,currency,at_ms\n";
    let rows = "1,b,m,5,EUR,-62135596800000\n\
        2,\"a,\"\"b\"\"\",m,-7,EUR,-1\n\
        3,a,m,9223372036854775807,EUR,0\n\
        4,a,m,9223372036854775807,EUR,9999\n\
        5,a,m,-9223372036854775808,EUR,10000\n\
        6,a,m,-9223372036854775808,EUR,1767323045678\n\
        7,a,m,1,EUR,253370764799999\n\
        8,late,m,1,EUR,9\n";
    folder.file("in.csv", format!("{head}{rows}"));
    let ended = totals(&folder, "--csv {}/in.csv --until-end --late {}/late.csv");
    let expected = "window_start,window_end,account,count,sum_cents,min_cents,max_cents\n\
        0001-01-01T00:00:00.000Z,0001-01-01T00:00:10.000Z,b,1,5,5,5\n\
        1969-12-31T23:59:50.000Z,1970-01-01T00:00:00.000Z,\"a,\"\"b\"\"\",1,-7,-7,-7\n\
        1970-01-01T00:00:00.000Z,1970-01-01T00:00:10.000Z,a,2,18446744073709551614,\
        9223372036854775807,9223372036854775807\n\
        1970-01-01T00:00:10.000Z,1970-01-01T00:00:20.000Z,a,1,-9223372036854775808,\
        -9223372036854775808,-9223372036854775808\n\
        2026-01-02T03:04:00.000Z,2026-01-02T03:04:10.000Z,a,1,-9223372036854775808,\
        -9223372036854775808,-9223372036854775808\n\
        9998-12-31T23:59:50.000Z,9999-01-01T00:00:00.000Z,a,1,1,1,1\n";
    assert_eq!(ended.code(0).stdout(), expected);
    assert_eq!(fs::read_to_string(folder.path("late.csv")).unwrap(), format!("{head}8,late,m,1,EUR,9\n"));
    assert_eq!(ended.figures("transactions: "), [8, 8, 0]);
    assert_eq!(ended.figures("totals: ")[..4], [8, 7, 1, 6]);
}

#[test]
fn standard_output_has_results_and_nothing_else() {
    let folder = Folder::new();
    let rows = wild(5, 2_000);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    for out in ["--out -", ""] {
        let ended = totals(&folder, &format!("--csv {{}}/in.csv --until-end -w 2 {out}"));
        let records = parse_csv(ended.code(0).stdout());
        assert_eq!(records[0], TOTALS);
        same_rows(&records[1..], &expected_of(&rows).rows());
        assert!(!ended.stderr.is_empty());
    }
    let silent = totals(&folder, "--csv {}/in.csv --until-end --progress off --out {}/out.csv");
    assert_eq!((silent.code(0).stderr.as_str(), silent.stdout.len()), ("", 0));
}

#[test]
fn a_reader_of_standard_output_that_goes_away_is_an_error() {
    let folder = Folder::new();
    folder.file("in.csv", csv_of(&wild(6, 2_000), &COLUMNS));
    let (reader, writer) = std::io::pipe().unwrap();
    let line = typed(&folder, "--csv {}/in.csv --until-end");
    let running = start_with(ACCOUNT_TOTALS, line, |command| {
        command.stdout(Stdio::from(writer));
    });
    drop(reader);
    check_contains(running.end().error(1), &["stdout", "stopped"]);
}

#[test]
fn an_existing_file_is_replaced() {
    let folder = Folder::new();
    let rows = tidy(7, 500);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    for (name, flag) in [("out.csv", "--out"), ("late.csv", "--late"), ("rejects.ndjson", "--rejects")] {
        folder.file(name, format!("what {flag} had\n").repeat(100_000));
    }
    let line = "--csv {}/in.csv --until-end --out {}/out.csv --late {}/late.csv --rejects {}/rejects.ndjson";
    totals(&folder, line).code(0);
    check_totals(&folder.path("out.csv"), &expected_of(&rows));
    assert_eq!(fs::read_to_string(folder.path("late.csv")).unwrap(), COLUMNS.join(",") + "\n");
    assert_eq!(fs::read_to_string(folder.path("rejects.ndjson")).unwrap(), "");
}

/// The input is never written to, whatever path names it.
#[test]
fn the_input_is_never_written_to() {
    let folder = Folder::new();
    let text = csv_of(&tidy(8, 300), &COLUMNS);
    folder.file("in.csv", &text);
    std::os::unix::fs::symlink(folder.path("in.csv"), folder.path("linked.csv")).unwrap();
    fs::hard_link(folder.path("in.csv"), folder.path("hard.csv")).unwrap();
    for line in [
        "--out {}/in.csv",
        "--out {}/./in.csv",
        "--out {}/linked.csv",
        "--out {}/hard.csv",
        "--late {}/in.csv --out {}/out.csv",
        "--rejects {}/in.csv --out {}/out.csv",
    ] {
        let ended = totals(&folder, &format!("--csv {{}}/in.csv --until-end {line}"));
        assert_eq!(fs::read_to_string(folder.path("in.csv")).unwrap(), text, "{line} destroyed the input");
        check_contains(ended.error(2), &["the file that is read", line.split(' ').next().unwrap()]);
    }
}

#[test]
fn a_query_that_cannot_start_leaves_earlier_results_alone() {
    let folder = Folder::new();
    folder.file("head.csv", "id,account\n");
    for (input, workers) in [("missing.csv", 1), ("missing.csv", 2), ("head.csv", 1), ("head.csv", 2)] {
        folder.file("out.csv", "dear\n");
        folder.file("late.csv", "dear\n");
        let line = format!("--csv {{}}/{input} --out {{}}/out.csv --late {{}}/late.csv --until-end -w {workers}");
        check_contains(totals(&folder, &line).error(1), &[input]);
        assert_eq!(fs::read_to_string(folder.path("out.csv")).unwrap(), "dear\n");
        assert_eq!(fs::read_to_string(folder.path("late.csv")).unwrap(), "dear\n");
        assert!(totals(&folder, &format!("--csv {{}}/{input} --until-end -w {workers}")).stdout.is_empty());
    }
}

#[test]
fn two_outputs_do_not_share_a_file() {
    let folder = Folder::new();
    folder.file("in.csv", csv_of(&tidy(9, 300), &COLUMNS));
    let ended = totals(&folder, "--csv {}/in.csv --until-end --out {}/a.csv --late {}/a.csv");
    check_contains(ended.error(2), &["a.csv", "are one file"]);
}

/// Bad records among good ones, each on a line of its own, or on two.
#[test]
fn rejects_are_exactly_the_rejected_records_with_their_places() {
    let folder = Folder::new();
    let rows = wild(10, 6_000);
    let expected = expected_of(&rows);
    let bad: [(&[u8], &str, &str); 6] = [
        (b"x,a,m,1,EUR,5", "column `id`", "text"),
        (b"1,\"a\nb\",m,1,EUR,soon", "column `at_ms`", "text"),
        (b"1,a,m,1,EUR", "5 fields where the header names 6", "text"),
        (b"1,a,m,1,EUR,5,6", "7 fields where the header names 6", "text"),
        (b"1,\xff\xfe,m,1,EUR,5", "invalid utf-8", "hex"),
        (b"1,a,m,1,EUR,253370764800000", "outside the years 1 to 9998", "text"),
    ];
    let (mut text, mut rejects) = (csv_line(COLUMNS).into_bytes(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        if number % 50 == 0 {
            let (record, reason, encoding) = bad[number / 50 % bad.len()];
            let line = 1 + text.iter().filter(|byte| **byte == b'\n').count();
            rejects.push((text.len(), line, record, reason, encoding));
            text.extend([record, b"\n\n"].concat());
        }
        text.extend(csv_line(COLUMNS.map(|name| row.column(name))).into_bytes());
    }
    let input = folder.file("in.csv", &text);
    for workers in [1, 4] {
        let line = "--csv {}/in.csv --until-end --out {}/out.csv --late {}/late.ndjson --rejects {}/rejects.csv";
        let ended = totals(&folder, &format!("{line} -w {workers}"));
        check_figures(ended.code(0), &expected, rejects.len() as u64);
        check_totals(&folder.path("out.csv"), &expected);
        assert_eq!(fs::read_to_string(folder.path("late.ndjson")).unwrap().lines().count(), expected.late.len());
        let header = ["source", "place", "partition", "offset", "line", "reason", "encoding", "record"];
        let mut found = rows_of(&folder.path("rejects.csv"), &header);
        found.sort_by_key(|row| row[3].parse::<usize>().unwrap());
        assert_eq!(found.len(), rejects.len());
        for (row, (offset, line, record, reason, encoding)) in found.iter().zip(&rejects) {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let shown = String::from_utf8(record.to_vec()).unwrap_or_else(|_| hex(record));
            let (offset, line) = (offset.to_string(), line.to_string());
            assert_eq!(row[..5], ["transactions", &input, "0", &offset, &line]);
            assert!(row[5].contains(reason), "{row:?} does not say {reason}");
            assert_eq!(row[6..], [*encoding, &shown]);
        }
    }
}

#[test]
fn a_file_without_records_gives_files_with_headers() {
    let folder = Folder::new();
    for (flag, name, text) in
        [("--csv", "head.csv", COLUMNS.join(",") + "\n"), ("--ndjson", "empty.ndjson", String::new())]
    {
        folder.file(name, text);
        let line =
            format!("{flag} {{}}/{name} --until-end --out {{}}/out.csv --late {{}}/late.csv --rejects {{}}/r.csv");
        totals(&folder, &line).code(0);
        check_totals(&folder.path("out.csv"), &Expected::default());
        assert_eq!(rows_of(&folder.path("late.csv"), &COLUMNS).len(), 0);
        assert_eq!(fs::read_to_string(folder.path("r.csv")).unwrap().lines().count(), 1);
        let ended = totals(&folder, &format!("{flag} {{}}/{name} --until-end -w 2"));
        assert_eq!(ended.code(0).stdout(), TOTALS.join(",") + "\n");
    }
}

/// Returns the balances that remain after all changes, in the file's order. At no time has a holder two.
fn balances_of(path: &Path) -> BTreeMap<String, i128> {
    let mut now = BTreeMap::<String, Vec<i128>>::new();
    for row in rows_of(path, &["holder", "balance_cents", "diff"]) {
        let [holder, cents, diff] = <[String; 3]>::try_from(row).unwrap();
        let cents: i128 = cents.parse().unwrap();
        let held = now.entry(holder).or_default();
        match diff.as_str() {
            "1" => held.push(cents),
            "-1" => {
                let at = held.iter().position(|held| *held == cents).expect("taken back without having been there");
                held.remove(at);
            }
            other => panic!("a diff of {other}"),
        }
        assert!(held.len() <= 2, "{held:?}");
    }
    now.into_iter().map(|(holder, held)| (holder, <[i128; 1]>::try_from(held).unwrap()[0])).collect()
}

#[test]
fn balances_are_right_in_the_end_and_add_up_to_nothing_all_the_time() {
    let folder = Folder::new();
    let mut rows = wild(11, 6_000);
    // An account that pays itself.
    rows.iter_mut().step_by(100).for_each(|row| row.merchant = row.account.clone());
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    folder.file("in.ndjson", ndjson_of(&rows));
    let mut expected = BTreeMap::<String, i128>::new();
    for row in &rows {
        *expected.entry(row.account.clone()).or_default() += i128::from(row.amount_cents);
        *expected.entry(row.merchant.clone()).or_default() -= i128::from(row.amount_cents);
    }
    for (input, workers) in [("--csv {}/in.csv", 1), ("--csv {}/in.csv", 4), ("--ndjson {}/in.ndjson", 2)] {
        let line = format!("{input} --until-end -w {workers} --out {{}}/out.csv --in-flight 1MiB --epoch 5ms");
        let ended = run(BALANCES, typed(&folder, &line));
        assert!(ended.code(0).stderr.contains("every total 0"), "{}", ended.stderr);
        assert_eq!(balances_of(&folder.path("out.csv")), expected);
        let figures = "balances: 12000 in = 12000 counted + 0 late;";
        assert!(ended.stderr.contains(figures), "{}", ended.stderr);
    }
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let folder = Folder::new();
    folder.file("in.csv", csv_of(&tidy(12, 10), &COLUMNS));
    for (line, word) in [
        ("--csv {}/in.csv --until-ned", "--until-ned"),
        ("", "nothing to read"),
        ("--csv {}/in.csv --out {}/results", "results"),
        ("--csv {}/in.csv --out {}/results.txt", "results.txt"),
        ("--csv {}/in.csv --rejects {}/rejects.xml", "--rejects"),
        ("--csv {}/in.csv --out kafka:totals", "--brokers"),
        ("--csv {}/in.csv -w 0", "-w"),
        ("--csv {}/in.csv -w -1", "-1"),
        ("--csv {}/in.csv -w two", "two"),
        ("--csv {}/in.csv -w 100000", "100000"),
        ("--csv {}/in.csv --out-of-order soon", "soon"),
        ("--csv {}/in.csv --out-of-order=-1s", "-1s"),
        ("--csv {}/in.csv --epoch 5", "--epoch"),
        ("--csv {}/in.csv --in-flight lots", "lots"),
        ("--csv {}/in.csv --ndjson {}/in.ndjson", "--ndjson"),
        ("--csv {}/in.csv extra", "extra"),
        ("--csv {}/in.csv --progress maybe", "maybe"),
        ("--csv {}/in.csv --kafka-config novalue", "novalue"),
        ("--brokers localhost:1 --kafka-config no.such.property=1", "no.such.property"),
        ("--csv {}/in.csv -n 2 -p 2", "-p 2"),
        ("--csv {}/in.csv -n 0", "--processes"),
        ("--csv {}/in.csv --allowed-lateness soon", "--allowed-lateness"),
        ("--csv {}/in.csv --late-as messages", "--late-as messages"),
        ("--csv {}/in.csv --late-as letters", "letters"),
    ] {
        for program in [ACCOUNT_TOTALS, BALANCES] {
            let ended = run(program, typed(&folder, &format!("{line} --until-end")));
            assert!(ended.code(2).stderr.contains(word), "{line}: `{word}` is not in: {}", ended.stderr);
            assert!(ended.stdout.is_empty());
            ended.error(2);
        }
    }
    check_contains(totals(&folder, "--csv {}/in.csv --late {}/late --until-end").error(2), &["--late"]);
    let to_file = totals(&folder, "--brokers localhost:1 --late {}/late.csv --late-as messages");
    check_contains(to_file.error(2), &["late.csv gets no messages", "--late kafka:TOPIC"]);
    let of_file = totals(&folder, "--csv {}/in.csv --brokers localhost:1 --late kafka:late --late-as messages");
    check_contains(of_file.error(2), &["--late-as messages", "records of a file were never messages"]);
    totals(&folder, "--csv").error(2);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1, "wrong usage leaves no file behind");
    for (flag, word) in [("--help", "--until-end"), ("-h", "Examples:"), ("--version", env!("CARGO_PKG_VERSION"))] {
        assert!(totals(&folder, flag).code(0).stdout().contains(word));
    }
    check_contains(totals(&folder, "--csv {}/missing.csv --until-end").error(1), &["missing.csv", "No such file"]);
}

#[test]
fn a_copy_of_the_program_works_anywhere() {
    let folder = Folder::new();
    let rows = tidy(13, 400);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    let copy = folder.path("a copy");
    fs::copy(run::TIDEGATE, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let line = [ACCOUNT_TOTALS, "--csv", "in.csv", "--out", "out.csv", "--until-end"];
    let running = start_with(&copy, line, |command| {
        command.env_clear().current_dir(folder.0.path());
    });
    running.end().code(0);
    check_totals(&folder.path("out.csv"), &expected_of(&rows));
}

/// Appends to a file that is being followed.
struct Growing {
    file: fs::File,
}

impl Growing {
    fn new(path: &Path, text: &str) -> Self {
        fs::write(path, text).unwrap();
        Growing { file: fs::OpenOptions::new().append(true).open(path).unwrap() }
    }

    fn append(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).unwrap();
    }
}

/// Waits until the results file has this many rows.
#[track_caller]
fn until_rows(running: &mut Running, path: &Path, count: usize) -> Vec<Vec<String>> {
    running.wait_until(&format!("{count} rows"), |_| {
        let records = whole_records(&fs::read_to_string(path).ok()?).ok()?;
        (records.len() > count).then(|| records[1..].to_vec())
    })
}

#[test]
fn a_growing_file_is_followed_and_windows_are_shown_when_they_close() {
    let folder = Folder::new();
    let at = |second: i64, id: u64| Transaction::new(id, "a", 1, START_MS + second * 1000);
    let text = |row: &Transaction| csv_line(COLUMNS.map(|name| row.column(name)));
    let mut input = Growing::new(&folder.path("in.csv"), "id,account,merch");
    let line = "--csv {}/in.csv --out {}/out.csv --epoch 20ms --late {}/late.csv -w 2";
    let mut running = start(ACCOUNT_TOTALS, typed(&folder, line));
    input.append("ant,amount_cents,currency,at_ms\n");
    let mut rows = vec![at(0, 0), at(9, 1), at(11, 2)];
    rows.iter().for_each(|row| input.append(&text(row)));
    // 12 s closes the first window, as records may be 2 s late; an incomplete line has no effect yet.
    let closing = text(&at(12, 3));
    let (half, rest) = closing.split_at(closing.len() - 4);
    input.append(half);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(fs::read_to_string(folder.path("out.csv")).unwrap(), TOTALS.join(",") + "\n");
    input.append(rest);
    rows.push(at(12, 3));
    let expected = |rows: &[Transaction], windows: usize| expected_of(rows).rows()[..windows].to_vec();
    same_rows(&until_rows(&mut running, &folder.path("out.csv"), 1), &expected(&rows, 1));
    for (id, second) in [(4, 31), (5, 29), (6, 28), (7, 9), (8, 33), (9, 45)] {
        rows.push(at(second, id));
        input.append(&text(&at(second, id)));
    }
    same_rows(&until_rows(&mut running, &folder.path("out.csv"), 4), &expected(&rows, 4));
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert!(ended.code(143).stdout.is_empty());
    // The window that is still open was not published.
    same_rows(&rows_of(&folder.path("out.csv"), &TOTALS), &expected(&rows, 4));
    assert_eq!(rows_of(&folder.path("late.csv"), &COLUMNS).len(), 1);
    assert_eq!(ended.figures("transactions: "), [10, 10, 0]);
}

#[test]
fn a_stop_leaves_whole_lines_and_only_final_results() {
    let folder = Folder::new();
    let rows = wild(14, 60_000);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    let all = expected_of(&rows).rows();
    for (signal, code, workers) in [(Signal::SIGINT, 130, 1), (Signal::SIGTERM, 143, 2)] {
        // A file of its own: rows of the run before would be taken for those of this one.
        let out = format!("out-{workers}.csv");
        let line = format!("--csv {{}}/in.csv --out {{}}/{out} --epoch 5ms --in-flight 1MiB -w {workers}");
        let mut running = start(ACCOUNT_TOTALS, typed(&folder, &line));
        until_rows(&mut running, &folder.path(&out), 1);
        running.signal(signal);
        running.end().code(code);
        let found = rows_of(&folder.path(&out), &TOTALS);
        assert!(!found.is_empty() && found.len() < all.len(), "{} rows of {}", found.len(), all.len());
        assert_eq!(found, all[..found.len()], "what closed before the stop, complete and in order");
    }
}

#[test]
fn balances_that_are_stopped_add_up_to_nothing() {
    let folder = Folder::new();
    let rows = wild(15, 60_000);
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    let line = "--csv {}/in.csv --out {}/out.csv --epoch 5ms --in-flight 1MiB -w 2";
    let mut running = start(BALANCES, typed(&folder, line));
    running.wait_until("balances", |_| (fs::metadata(folder.path("out.csv")).ok()?.len() > 1000).then_some(()));
    running.signal(Signal::SIGINT);
    assert!(running.end().code(130).stderr.contains("every total 0"));
    assert_eq!(balances_of(&folder.path("out.csv")).into_values().sum::<i128>(), 0);
}

#[test]
fn names_with_commas_quotes_and_line_breaks_come_back_as_they_were() {
    let folder = Folder::new();
    let rows: Vec<Transaction> =
        (transactions::NAMES.iter().enumerate()).map(|(id, name)| Transaction::new(id as u64, name, 1, 0)).collect();
    folder.file("in.csv", csv_of(&rows, &COLUMNS));
    totals(&folder, "--csv {}/in.csv --until-end --out {}/out.csv").code(0);
    let found: Vec<String> = rows_of(&folder.path("out.csv"), &TOTALS).into_iter().map(|row| row[2].clone()).collect();
    let mut names = transactions::NAMES.map(String::from);
    names.sort();
    assert_eq!(found, names);
    assert!(names.iter().any(|name| quoted(name) != *name));
}
