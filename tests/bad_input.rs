//! Whatever a file contains, and whatever goes wrong, a query program ends with results or with one line that the user
//! can act on: never with a panic, a hang, or a value in the format of `Debug`. A bad record affects no other record.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[path = "common/ports.rs"]
mod ports;
#[path = "common/run.rs"]
mod run;
#[path = "common/transactions.rs"]
mod transactions;

use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ports::free_address;
use run::{ProgramOutput, check_contains, run};
use tempfile::TempDir;
use transactions::{COLUMNS, START_MS, TOTALS, Transaction, csv_line, csv_of, expected_of, json_of, rows_of, tidy};

const ACCOUNT_TOTALS: &str = "account_totals";
const HEADER: &str = "id,account,merchant,amount_cents,currency,at_ms\n";

/// A folder with an input, in which results, late records and rejects will be.
struct Case {
    folder: TempDir,
    flag: &'static str,
}

impl Case {
    fn new(flag: &'static str, input: impl AsRef<[u8]>) -> Self {
        let case = Case { folder: tempfile::tempdir().unwrap(), flag };
        fs::write(case.path("in"), input).unwrap();
        case
    }

    fn csv(input: impl AsRef<[u8]>) -> Self {
        Case::new("--csv", input)
    }

    fn ndjson(input: impl AsRef<[u8]>) -> Self {
        Case::new("--ndjson", input)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `account_totals` on the input, with more flags.
    #[track_caller]
    fn run(&self, more: &str) -> ProgramOutput {
        let mut arguments = vec![self.flag.to_owned(), self.path("in").display().to_string(), "--until-end".to_owned()];
        for (flag, name) in [("--out", "out.csv"), ("--late", "late.csv"), ("--rejects", "rejects.ndjson")] {
            if !more.contains(flag) {
                arguments.extend([flag.to_owned(), self.path(name).display().to_string()]);
            }
        }
        let folder = self.folder.path().to_str().unwrap();
        arguments.extend(more.split_whitespace().map(|word| word.replace("{}", folder)));
        run(ACCOUNT_TOTALS, arguments)
    }

    /// Runs it successfully; returns the numbers of records read, accepted and rejected.
    #[track_caller]
    fn figures(&self, more: &str) -> [u64; 3] {
        self.run(more).code(0).figures("transactions: ").try_into().unwrap()
    }

    fn totals(&self) -> Vec<Vec<String>> {
        rows_of(&self.path("out.csv"), &TOTALS)
    }

    /// Returns the rejected records.
    fn rejects(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("rejects.ndjson")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Returns rows of CSV without a header.
fn csv_rows(rows: &[Transaction]) -> Vec<u8> {
    csv_of(rows, &COLUMNS).into_bytes().split_off(HEADER.len())
}

/// Returns good rows, and the same rows with a bad record between each two of them.
fn with_bad(bad: &[&[u8]], line: impl Fn(&Transaction) -> String) -> (Vec<Transaction>, Vec<u8>) {
    let rows = tidy(1, bad.len() + 1);
    let mut bytes = line(&rows[0]).into_bytes();
    for (row, bad) in rows[1..].iter().zip(bad) {
        bytes.extend([bad, &b"\n"[..], line(row).as_bytes()].concat());
    }
    (rows, bytes)
}

/// Fails unless each bad record is rejected for its reason, and nothing else is.
#[track_caller]
fn check_rejects(case: &Case, rows: &[Transaction], bad: &[(&[u8], &str)]) {
    for workers in ["-w 1", "-w 3"] {
        let (good, rejected) = (rows.len() as u64, bad.len() as u64);
        assert_eq!(case.figures(workers), [good + rejected, good, rejected]);
        assert_eq!(case.totals(), expected_of(rows).rows());
        let mut rejects = case.rejects();
        rejects.sort_by_key(|reject| reject["offset"].as_u64());
        for (reject, (record, reason)) in rejects.iter().zip(bad) {
            let said = reject["reason"].as_str().unwrap();
            let of = String::from_utf8_lossy(&record[..record.len().min(80)]);
            assert!(said.contains(reason), "`{reason}` is not in: {said}: {of}");
            assert!(!said.contains('\n') && !said.contains("Error("), "{said}");
            match reject["encoding"].as_str().unwrap() {
                "text" => assert_eq!(reject["record"].as_str().unwrap().as_bytes(), *record),
                _ => assert!(std::str::from_utf8(record).is_err()),
            }
        }
    }
}

#[test]
fn bad_lines_of_json_cost_nothing_but_themselves() {
    let bad: [(&[u8], &str); 32] = [
        (b"{", "EOF"),
        (b"}", "expected value"),
        (b"not json", "expected"),
        (b"null", "null"),
        (b"[]", ""),
        (b"17", "integer"),
        (b"\"text\"", "string"),
        (b"{}", "missing field"),
        (b"[1,\"a\",\"m\",1,\"EUR\",5", "EOF"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR"}"#, "`at_ms`"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5} x"#, "trailing"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}{}"#, "trailing"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5,}"#, "trailing comma"),
        (br#"{"id":-1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}"#, "`-1`"),
        (br#"{"id":"1","account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}"#, "string"),
        (br#"{"id":1,"account":7,"merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}"#, "`7`"),
        (br#"{"id":1,"account":null,"merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}"#, "null"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1.5,"currency":"EUR","at_ms":5}"#, "1.5"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1e3,"currency":"EUR","at_ms":5}"#, "1000.0"),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":01,"currency":"EUR","at_ms":5}"#, "number"),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":9223372036854775808,"currency":"E","at_ms":5}"#,
            "9223",
        ),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":-9223372036854775809,"currency":"E","at_ms":5}"#,
            "9.22",
        ),
        (br#"{"id":18446744073709551616,"account":"a","merchant":"m","amount_cents":1,"currency":"E","at_ms":5}"#, ""),
        (br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":1e400}"#, "range"),
        (br#"{"id":1,"id":2,"account":"a","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":5}"#, "duplicate"),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"E","at_ms":253370764800000}"#,
            "outside",
        ),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"E","at_ms":-62135596800001}"#,
            "outside",
        ),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"E","at_ms":9223372036854775807}"#,
            "outside",
        ),
        (
            br#"{"id":1,"account":"a","merchant":"m","amount_cents":1,"currency":"E","at_ms":-9223372036854775808}"#,
            "outside",
        ),
        (
            b"{\"id\":1,\"account\":\"a\0b\",\"merchant\":\"m\",\"amount_cents\":1,\"currency\":\"E\",\"at_ms\":5}",
            "control",
        ),
        (
            b"{\"id\":1,\"account\":\"a\xffb\",\"merchant\":\"m\",\"amount_cents\":1,\"currency\":\"E\",\"at_ms\":5}",
            "unicode",
        ),
        (b"\0\0\0\0", "expected value"),
    ];
    let records = bad.map(|(record, _)| record);
    let (rows, input) = with_bad(&records, |row| json_of(row) + "\n");
    check_rejects(&Case::ndjson(input), &rows, &bad);
}

/// Deep nesting must not overflow the stack, wherever it is; in a field that is not read it is harmless.
#[test]
fn json_that_is_nested_deeply_does_not_overflow_the_stack() {
    let (open, close) = ("[".repeat(200_000), "]".repeat(200_000));
    let objects = r#"{"a":"#.repeat(200_000);
    let bad: [(&[u8], &str); 2] = [(open.as_bytes(), ""), (objects.as_bytes(), "EOF")];
    let deep = |row: &Transaction| format!("{{\"extra\":{open}{close},{}\n", json_of(row).split_off(1));
    let (rows, input) = with_bad(&bad.map(|(record, _)| record), deep);
    check_rejects(&Case::ndjson(input), &rows, &bad);
}

#[test]
fn bad_rows_of_csv_cost_nothing_but_themselves() {
    let bad: [(&[u8], &str); 24] = [
        (b"x", "1 field where"),
        (b",", "2 fields where"),
        (b",,,,,", "column `id`"),
        (b"1,a,m,1,EUR", "5 fields"),
        (b"1,\"a\" b\",m,1,EUR,5", "column `account`: there is text behind its closing quote"),
        (b"1,\"a\"b,m,1,EUR,5", "column `account`: there is text behind"),
        (b"1,a,m,1,EUR,5,", "7 fields"),
        (b"-1,a,m,1,EUR,5", "column `id`"),
        (b"1.0,a,m,1,EUR,5", "column `id`"),
        (b"18446744073709551616,a,m,1,EUR,5", "column `id`"),
        (b"1,a,m,one,EUR,5", "column `amount_cents`"),
        (b"1,a,m,,EUR,5", "column `amount_cents`"),
        (b"1,a,m, 1,EUR,5", "column `amount_cents`"),
        (b"1,a,m,1e3,EUR,5", "column `amount_cents`"),
        (b"1,a,m,9223372036854775808,EUR,5", "column `amount_cents`"),
        (b"1,a,m,-9223372036854775809,EUR,5", "column `amount_cents`"),
        (b"1,a,m,1,EUR,2025-01-01T00:00:00Z", "column `at_ms`"),
        (b"1,a,m,1,EUR,5\0", "column `at_ms`"),
        (b"1,a,m,1,EUR,253370764800000", "outside the years 1 to 9998"),
        (b"1,a,m,1,EUR,-62135596800001", "outside the years 1 to 9998"),
        (b"1,a,m,1,EUR,9223372036854775807", "outside the years 1 to 9998"),
        (b"1,\xff,m,1,EUR,5", "column `account`"),
        (b"1,a,\"m\nm\n\n\",x,EUR,5", "column `amount_cents`"),
        (b"\0\0\0\0", "1 field where"),
    ];
    let records = bad.map(|(record, _)| record);
    let (rows, input) = with_bad(&records, |row| csv_line(COLUMNS.map(|name| row.column(name))));
    let case = Case::csv([HEADER.as_bytes(), &input].concat());
    check_rejects(&case, &rows, &bad);
}

/// A text may contain any character, zero bytes included.
#[test]
fn zero_bytes_in_names_are_kept() {
    let row = Transaction::new(1, "a\0b", 5, START_MS);
    for case in [Case::csv(csv_of(std::slice::from_ref(&row), &COLUMNS)), Case::ndjson(json_of(&row))] {
        assert_eq!(case.figures(""), [1, 1, 0]);
        assert_eq!(case.totals(), expected_of(std::slice::from_ref(&row)).rows());
    }
}

#[test]
fn records_of_ten_megabytes_are_records() {
    let mut rows = tidy(2, 20);
    rows[10].merchant = "x, ".repeat(3_500_000);
    let garbage = vec![b'x'; 10_000_000];
    let bad: [(&[u8], &str); 1] = [(&garbage, "")];
    let csv = [HEADER.as_bytes(), &csv_rows(&rows[..5]), &garbage, b"\n", &csv_rows(&rows[5..])];
    check_rejects(&Case::csv(csv.concat()), &rows, &bad);
    let lines = |rows: &[Transaction]| rows.iter().map(|row| json_of(row) + "\n").collect::<String>().into_bytes();
    let ndjson = [&lines(&rows[..5]), &garbage[..], b"\n", &lines(&rows[5..])];
    check_rejects(&Case::ndjson(ndjson.concat()), &rows, &bad);
}

#[test]
fn a_last_line_without_its_end_is_a_record() {
    let rows = tidy(3, 50);
    let json = rows.iter().map(json_of).collect::<Vec<_>>().join("\n");
    let csv = csv_of(&rows, &COLUMNS);
    for (case, end) in [(Case::ndjson(&json), "\r"), (Case::csv(csv.trim_end()), "\r\n")] {
        assert_eq!(case.figures(""), [50, 50, 0]);
        assert_eq!(case.totals(), expected_of(&rows).rows());
        let input = fs::read_to_string(case.path("in")).unwrap();
        fs::write(case.path("in"), input + end).unwrap();
        assert_eq!(case.figures("-w 2"), [50, 50, 0]);
    }
    let long = "y".repeat(20_000_000);
    assert_eq!(Case::ndjson(json + "\n" + &long).figures(""), [51, 50, 1]);
    assert_eq!(Case::csv(csv + &long).figures("-w 2"), [51, 50, 1]);
}

#[test]
fn files_without_records_are_read_to_their_end() {
    for input in ["", "\n", "\n\n\r\n\n", "\u{feff}", "\u{feff}\n", "  \n\t\n"] {
        let case = Case::ndjson(input);
        assert_eq!(case.figures(""), [0, 0, 0], "{input:?}");
        assert!(case.totals().is_empty());
    }
    for input in [
        "",
        "\n",
        "\n\n\r\n\n",
        "\u{feff}",
        HEADER,
        HEADER.trim_end(),
        "\u{feff}id,account,merchant,amount_cents,currency,at_ms\n\n",
    ] {
        let case = Case::csv(input);
        assert_eq!(case.figures("-w 2"), [0, 0, 0], "{input:?}");
        assert!(case.totals().is_empty());
    }
}

#[test]
fn a_byte_order_mark_and_blank_lines_are_no_records() {
    let rows = tidy(4, 30);
    let csv = csv_of(&rows, &COLUMNS);
    let json: String = rows.iter().map(|row| json_of(row) + "\r\n\r\n").collect();
    for case in [Case::csv(format!("\u{feff}\n{csv}\n\n")), Case::ndjson(format!("\u{feff}{json}"))] {
        assert_eq!(case.figures(""), [30, 30, 0]);
        assert_eq!(case.totals(), expected_of(&rows).rows());
    }
}

#[test]
fn a_header_that_does_not_fit_is_an_error_that_names_the_columns() {
    for (header, parts) in [
        ("id,account,merchant,amount_cents,currency\n", &["at_ms"][..]),
        ("a,b\n1,2\n", &["at_ms", "account", "`a`, `b`"]),
        ("id,account,merchant,amount_cents,currency,at_ms,account\n1,a,m,1,E,5,b\n", &["account"]),
        ("ID,account,merchant,amount_cents,currency,at_ms\n1,a,m,1,E,5\n", &["id", "`ID`"]),
        ("id;account;merchant;amount_cents;currency;at_ms\n1;a;m;1;E;5\n", &["at_ms"]),
        ("id, account, merchant, amount_cents, currency, at_ms\n1,a,m,1,E,5\n", &["account"]),
        ("  \n", &["at_ms"]),
        ("\"id,account\n1,2\n", &["account"]),
        ("{\"id\":1}\n", &["account"]),
        ("\0\0\0", &["account"]),
    ] {
        let case = Case::csv(header);
        let ended = case.run("-w 2");
        check_contains(ended.error(1), parts);
        check_contains(ended.error(1), &[case.path("in").to_str().unwrap()]);
    }
    let not_utf8 = Case::csv(b"\xff\xfe\0i\0d,account\n1,2\n");
    check_contains(not_utf8.run("").error(1), &["UTF-16", "iconv", not_utf8.path("in").to_str().unwrap()]);
}

/// Columns that are not read may be there twice, and contain anything.
#[test]
fn columns_that_are_not_needed_do_not_matter() {
    let header = "x,id,account,merchant,amount_cents,currency,at_ms,x,\n";
    let case = Case::csv([header.as_bytes(), b"\xff,1,a,m,5,EUR,7,\"\n\",\xfe\n,2,a,m,5,EUR,8,,\n"].concat());
    assert_eq!(case.figures(""), [2, 2, 0]);
    assert_eq!(case.totals()[0][3..5], ["2", "10"]);
}

/// Everything after a quote that is never closed is one record, and the error tells where it begins.
#[test]
fn an_unterminated_quote_is_one_rejected_record() {
    let rows = tidy(5, 400);
    let good = csv_of(&rows, &COLUMNS);
    let swallowed = csv_line(COLUMNS.map(|name| rows[0].column(name))).repeat(3_000);
    for tail in ["1,\"a,m,5,EUR,7", "1,\"a,m,5,EUR,7\n", &format!("1,\"{}", swallowed.replace('"', ""))] {
        let case = Case::csv(good.clone() + tail);
        for workers in ["-w 1", "-w 2"] {
            assert_eq!(case.figures(workers), [401, 400, 1]);
            assert_eq!(case.totals(), expected_of(&rows).rows());
            let reject = &case.rejects()[0];
            assert_eq!(reject["offset"].as_u64(), Some(good.len() as u64));
            assert_eq!(reject["line"].as_u64(), Some(good.lines().count() as u64 + 1));
        }
    }
}

/// The size of a record in memory is limited; tested with a sparse file, which takes no disk space.
#[test]
fn a_record_that_is_too_long_is_rejected_with_its_place_and_takes_no_memory() {
    let rows = tidy(6, 10);
    let case = Case::csv(csv_of(&rows, &COLUMNS));
    let length = fs::metadata(case.path("in")).unwrap().len();
    let mut file = fs::OpenOptions::new().write(true).open(case.path("in")).unwrap();
    file.seek(SeekFrom::Start(300 << 20)).unwrap();
    file.write_all(&[b"\n", &csv_rows(&rows)[..]].concat()).unwrap();
    let path = |name: &str| case.path(name).display().to_string();
    let line = format!(
        "--csv {} --until-end --out {} --rejects {} --out-of-order 1h -w 2",
        path("in"),
        path("out.csv"),
        path("rejects.ndjson")
    );
    let mut running = run::start(ACCOUNT_TOTALS, line.split(' '));
    let mut peak = 0;
    while running.is_alive() {
        peak = peak.max(running.peak_memory());
    }
    assert_eq!(running.end().code(0).figures("transactions: "), [21, 20, 1]);
    assert!((1..150 << 20).contains(&peak), "it had {peak} bytes");
    let reject = &case.rejects()[0];
    assert_eq!((reject["offset"].as_u64(), reject["line"].as_u64()), (Some(length), Some(12)));
    check_contains(
        reject["reason"].as_str().unwrap(),
        &[&format!("{} bytes", (300 << 20) + 1 - length), "--max-record"],
    );
    assert_eq!(reject["record"].as_str().unwrap().len(), 1024);
    // A million bytes are too long for a record where the limit is lower.
    let long = format!("x{}", "y".repeat(2 << 20));
    let case = Case::csv(csv_of(&rows, &COLUMNS) + &long + "\n");
    assert_eq!(case.figures("--max-record 1MiB"), [11, 10, 1]);
    check_contains(case.rejects()[0]["reason"].as_str().unwrap(), &["--max-record"]);
    assert_eq!(case.figures("--max-record 4MiB"), [11, 10, 1]);
    check_contains(case.rejects()[0]["reason"].as_str().unwrap(), &["1 field where"]);
}

/// An event time far ahead makes all later records late: the run warns, and names the record; `--max-ahead` rejects it.
#[test]
fn a_time_that_is_far_ahead_is_named_or_rejected() {
    let mut rows = tidy(11, 2_000);
    let good = expected_of(&rows).rows();
    rows.insert(20, Transaction::new(7, "a", 1, 253_000_000_000_000));
    for workers in ["-w 1", "-w 3"] {
        for case in [
            Case::csv(csv_of(&rows, &COLUMNS)),
            Case::ndjson(rows.iter().map(|row| json_of(row) + "\n").collect::<String>()),
        ] {
            let ended = case.run(&format!("{workers} --progress off"));
            // Fields of CSV may contain line breaks.
            let text = fs::read_to_string(case.path("in")).unwrap();
            let line = 1 + text[..text.find("253000000000000").unwrap()].matches('\n').count() as u64;
            let warning = ended.code(0).stderr.lines().find(|line| line.contains("were late in totals"));
            check_contains(warning.unwrap(), &["WARN", &format!("line {line} "), "/in", "9987-", "--max-ahead"]);
            assert_eq!(case.figures(&format!("{workers} --max-ahead 365d")), [2001, 2000, 1]);
            assert_eq!(case.totals(), good);
            let reject = &case.rejects()[0];
            assert_eq!(reject["line"].as_u64(), Some(line));
            check_contains(
                reject["reason"].as_str().unwrap(),
                &["ahead of the greatest one before it", "(--max-ahead)"],
            );
        }
    }
    // There is no warning if few records are late.
    let case = Case::csv(csv_of(&tidy(12, 500), &COLUMNS));
    assert!(!case.run("").code(0).stderr.contains("were late"));
}

#[test]
fn outputs_that_are_one_file_are_refused_and_left_as_they_are() {
    let case = Case::csv(csv_of(&tidy(13, 10), &COLUMNS));
    fs::write(case.path("x.csv"), "precious\n").unwrap();
    symlink(case.path("x.csv"), case.path("y.csv")).unwrap();
    for (flags, both) in [
        ("--out {}/x.csv --late {}/x.csv", ["--out", "--late"]),
        ("--out {}/x.csv --late {}/y.csv", ["--out", "--late"]),
        ("--late {}/x.csv --rejects {}/x.csv", ["--late", "--rejects"]),
        ("--out {}/x.csv --rejects {}/../x.csv", ["--out", "--rejects"]),
    ] {
        let flags = flags.replace("/../x.csv", "/./x.csv");
        check_contains(case.run(&flags).error(2), &[both[0], both[1], "are one file", "name a file for each"]);
        assert_eq!(fs::read_to_string(case.path("x.csv")).unwrap(), "precious\n");
    }
    // Paths to one file are equal even if the file does not exist yet.
    check_contains(case.run("--out {}/new.csv --late {}/./new.csv").error(2), &["are one file"]);
    assert!(!case.path("new.csv").exists());
}

#[test]
fn an_error_quotes_no_more_than_people_read() {
    let names = (0..120_000).map(|at| format!("column{at}")).collect::<Vec<_>>().join(",");
    let ended = Case::csv(names + "\n").run("");
    let line = ended.error(1);
    check_contains(line, &["lacks the columns `id`", "`column0`", "and 119988 more"]);
    assert!(line.len() < 2_000, "{} bytes", line.len());
    // The reason does not repeat a record of a million letters.
    let case = Case::ndjson(format!("{{\"id\":\"{}\"}}\n", "x".repeat(1 << 20)));
    assert_eq!(case.figures(""), [1, 0, 1]);
    let reason = case.rejects()[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.len() < 1_000 && reason.contains("invalid type: string"), "{reason}");
}

#[test]
fn the_first_reject_is_told_where_rejects_go_nowhere() {
    let case = Case::ndjson("{}\nx\n");
    let input = case.path("in").display().to_string();
    let told = |more: &str| {
        let line = format!("--ndjson {input} --until-end --progress off {more}");
        let ended = run(ACCOUNT_TOTALS, line.split_whitespace());
        let lines = ended.code(0).stderr.lines().filter(|line| line.contains("rejected")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let lines = told("-w 2");
    assert_eq!(lines.len(), 1, "{lines:?}");
    check_contains(&lines[0], &["WARN", &input, "line 1", "missing field `id`", "--rejects FILE"]);
    assert!(told(&format!("--rejects {}", case.path("r.ndjson").display())).is_empty());
}

#[test]
fn times_that_look_like_another_unit_are_told() {
    let row = |at_ms: i64| Transaction::new(1, "a", 5, at_ms);
    let rows = [row(1_767_323_045), row(1_767_323_046)];
    let ended = Case::csv(csv_of(&rows, &COLUMNS)).run("--progress off");
    let lines: Vec<_> = ended.code(0).stderr.lines().filter(|line| line.contains("look like seconds")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    check_contains(lines[0], &["WARN", "/in", "1767323045", "1970-01-21"]);
    let case = Case::csv(csv_of(&[row(1_767_323_045_000_000), row(1_767_323_045_000_000_000)], &COLUMNS));
    assert_eq!(case.figures(""), [2, 0, 2]);
    let mut reasons: Vec<_> =
        case.rejects().iter().map(|reject| reject["reason"].as_str().unwrap().to_owned()).collect();
    reasons.sort();
    check_contains(&reasons[0], &["are they microseconds"]);
    check_contains(&reasons[1], &["are they nanoseconds"]);
    assert!(!Case::csv(csv_of(&tidy(1, 10), &COLUMNS)).run("").stderr.contains("look like"));
}

#[test]
fn equal_rows_are_counted_as_often_as_they_are_written() {
    let mut rows = tidy(14, 100);
    let late = Transaction::new(0, "late", 1, START_MS - 100_000);
    rows.extend([late.clone(), late.clone(), late]);
    let case = Case::csv(csv_of(&rows, &COLUMNS));
    let ended = case.run("");
    let written = fs::read_to_string(case.path("late.csv")).unwrap().lines().count() as u64 - 1;
    assert_eq!((written, ended.code(0).figures("late: ")[0]), (3, 3));
}

#[test]
fn a_followed_file_that_is_moved_is_an_error() {
    let rows = tidy(15, 500);
    let case = Case::csv(csv_of(&rows, &COLUMNS));
    let (input, out) = (case.path("in"), case.path("out.csv"));
    let line = ["--csv", input.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let mut running = run::start(ACCOUNT_TOTALS, line);
    running.wait_until("rows", |_| (fs::metadata(&out).ok()?.len() > 200).then_some(()));
    fs::rename(&input, case.path("in.1")).unwrap();
    fs::write(&input, csv_of(&rows, &COLUMNS)).unwrap();
    check_contains(running.end().error(1), &["/in", "was moved or removed while it was followed", "a new --state"]);
}

#[test]
fn inputs_that_are_no_files_are_named() {
    let case = Case::csv("");
    fs::remove_file(case.path("in")).unwrap();
    check_contains(case.run("").error(1), &["/in", "No such file", "check the path"]);
    fs::create_dir(case.path("in")).unwrap();
    check_contains(case.run("").error(1), &["/in", "not a regular file"]);
    fs::remove_dir(case.path("in")).unwrap();
    symlink(case.path("in"), case.path("in")).unwrap();
    check_contains(case.run("").error(1), &["/in", "symbolic links"]);
    fs::remove_file(case.path("in")).unwrap();
    // A named pipe must not block the program.
    assert!(Command::new("mkfifo").arg(case.path("in")).status().unwrap().success());
    check_contains(case.run("").error(1), &["/in", "not a regular file"]);
    fs::remove_file(case.path("in")).unwrap();
    symlink("/dev/zero", case.path("in")).unwrap();
    check_contains(case.run("-w 2").error(1), &["/in", "not a regular file"]);
    fs::remove_file(case.path("in")).unwrap();
    fs::write(case.path("in"), HEADER).unwrap();
    fs::set_permissions(case.path("in"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(case.path("in")).is_ok() {
        eprintln!("SKIPPED: this user may read every file");
    } else {
        check_contains(case.run("").error(1), &["/in", "Permission denied"]);
    }
}

#[test]
fn a_rejected_record_ends_the_run_if_that_is_asked_for() {
    let rows = tidy(7, 3_000);
    let mut csv = csv_of(&rows, &COLUMNS);
    let line = csv.lines().count() + 1;
    csv += "1,a,m,five,EUR,7\n";
    let case = Case::csv([csv.as_bytes(), &csv_rows(&rows)].concat());
    for workers in ["-w 1", "-w 4"] {
        let ended = case.run(&format!("--fail-on-reject {workers}"));
        check_contains(
            ended.error(1),
            &["a record was rejected", "/in", &format!("line {line}"), "column `amount_cents`"],
        );
        let rows = case.totals();
        transactions::sorted_by_window(&rows);
    }
    let case = Case::ndjson("{}\n");
    check_contains(case.run("--fail-on-reject").error(1), &["/in", "line 1", "missing field `id`"]);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let mut rows = tidy(8, 2_000);
    rows.push(Transaction::new(0, "late", 1, START_MS - 100_000));
    let case = Case::csv(csv_of(&rows, &COLUMNS) + "bad\n");
    for flag in ["--out", "--late", "--rejects"] {
        for name in ["x.csv", "x.ndjson"] {
            let _ = fs::remove_file(case.path(name));
            symlink("/dev/full", case.path(name)).unwrap();
            let ended = case.run(&format!("{flag} {{}}/{name} -w 2"));
            check_contains(ended.error(1), &[name, "the disk is full"]);
        }
    }
}

#[test]
fn outputs_that_cannot_be_are_named() {
    let case = Case::csv(HEADER);
    fs::create_dir(case.path("folder.csv")).unwrap();
    for (flags, parts) in [
        ("--out {}/folder.csv", &["folder.csv", "Is a directory"][..]),
        ("--out {}/none/x.csv", &["none/x.csv", "there is no directory", "create the directory"]),
        ("--late {}/none/x.csv", &["none/x.csv", "there is no directory"]),
        ("--rejects {}/in/x.csv", &["in/x.csv", "Not a directory"]),
    ] {
        check_contains(case.run(flags).error(1), parts);
    }
}

/// A file that is read may only grow.
#[test]
fn a_file_that_becomes_shorter_while_it_is_followed_is_an_error() {
    let case = Case::csv(csv_of(&tidy(9, 500), &COLUMNS));
    let (input, out) = (case.path("in"), case.path("out.csv"));
    let line = ["--csv", input.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let mut running = run::start(ACCOUNT_TOTALS, line);
    running.wait_until("rows", |_| (fs::metadata(&out).ok()?.len() > 200).then_some(()));
    fs::write(&input, HEADER).unwrap();
    check_contains(running.end().error(1), &["/in", "the file ends before what was already read"]);
}

#[test]
fn a_broker_that_is_not_there_is_named_soon() {
    // A port without a listener, and one whose listener does not answer.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let case = Case::csv(csv_of(&tidy(10, 10), &COLUMNS));
    let (free, silent_one) = (free_address(), silent.local_addr().unwrap().to_string());
    let (input, rejects) = (case.path("in").display().to_string(), case.path("rejects.csv").display().to_string());
    let (begun, mut started) = (Instant::now(), Vec::new());
    for address in [&free, &silent_one, "no.such.host.invalid:9092"] {
        started.push((address, run::start(ACCOUNT_TOTALS, ["--brokers", address, "--until-end", "-w", "2"])));
    }
    for address in [&free, &silent_one] {
        let line =
            ["--csv", &input, "--until-end", "--brokers", address, "--out", "kafka:totals", "--rejects", &rejects];
        // Two programs do not share a file.
        let line = if address == &free { &line[..] } else { &line[..7] };
        started.push((address, run::start(ACCOUNT_TOTALS, line)));
    }
    for (address, running) in started {
        check_contains(running.end().error(1), &[address, "--brokers"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
}
