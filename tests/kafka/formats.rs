//! Formats of the tool's messages: Protocol Buffers of types that a file describes, and bytes as they are.

use std::fs;
use std::path::Path;

use prost::Message as _;
use tidegate::sink::kafka::Publisher;
use tidegate::source::Rejected;
use tidegate::source::kafka::EmbeddedBroker;

use crate::run::{check_contains, run};
use crate::tools::{copied, generated, tool};

/// The parts of a description that `protoc` writes for a file without imports.
#[derive(Clone, PartialEq, prost::Message)]
struct DescribedSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<DescribedFile>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescribedFile {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<DescribedType>,
    #[prost(string, tag = "12")]
    syntax: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescribedType {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    field: Vec<DescribedField>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DescribedField {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    number: i32,
    #[prost(int32, tag = "4")]
    label: i32,
    #[prost(int32, tag = "5")]
    kind: i32,
}

/// Writes a description of payments, whose fields have the names of a transaction's and other numbers and types, of
/// totals, and of messages whose id is a text.
fn describe(path: &Path) {
    let field = |(number, (name, kind)): (i32, &(&str, i32))| DescribedField {
        name: (*name).into(),
        number: 20 - number,
        label: 1,
        kind: *kind,
    };
    let of = |name: &str, fields: &[(&str, i32)]| DescribedType {
        name: name.into(),
        field: (1..).zip(fields).map(field).collect(),
    };
    let (int64, uint64, string, sint64) = (3, 4, 9, 18);
    let texts = [("account", string), ("merchant", string), ("currency", string), ("window_start", string)];
    let integers = [("id", uint64), ("amount_cents", sint64), ("at_ms", sint64), ("count", int64)];
    let rest = [("window_end", string), ("sum_cents", int64), ("min_cents", int64), ("max_cents", int64)];
    let payment = of("Payment", &[&integers[..3], &texts[..3]].concat());
    let total = of("Total", &[&texts[..1], &texts[3..], &integers[3..], &rest[..]].concat());
    let odd = of("Odd", &[("id", string)]);
    let file = DescribedFile {
        name: "acme.proto".into(),
        package: "acme".into(),
        message_type: vec![total, payment, odd],
        syntax: "proto3".into(),
    };
    fs::write(path, DescribedSet { file: vec![file] }.encode_to_vec()).unwrap();
}

/// Returns the lines of a file, in order.
fn sorted_lines(path: &Path) -> Vec<String> {
    let mut lines: Vec<_> = fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn messages_of_protocol_buffers_are_those_of_a_description_or_transactions() {
    let broker = EmbeddedBroker::start().unwrap();
    let (servers, folder) = (broker.servers(), tempfile::tempdir().unwrap());
    let here = folder.path();
    describe(&here.join("acme.desc"));
    let described = format!("--descriptor {}/acme.desc --message acme.Payment", here.display());
    for (topic, more) in [("json", "--format json"), ("own", "--format protobuf"), ("acme", &described)] {
        let more = if topic == "acme" { format!("--format protobuf {more}") } else { more.to_owned() };
        broker.create_topic(topic, 2).unwrap();
        let line = format!("--brokers {servers} --topic {topic} {more}");
        assert_eq!(tool(&format!("produce --generate 2000 --start-ms 5000 --seed 4 {line}")).unwrap(), 0);
        let out = format!("{}/{topic}.csv", here.display());
        assert_eq!(tool(&format!("consume --until-end --out {out} {line}")).unwrap(), 0);
        assert_eq!(copied(Path::new(&out)), generated(4, 2000), "{topic}");
        let totals = format!("--until-end --out {}/{topic}-totals.csv {line}", here.display());
        run("account_totals", totals.split_whitespace()).code(0);
    }
    let totals = |topic: &str| sorted_lines(&here.join(format!("{topic}-totals.csv")));
    assert!(totals("json").len() > 500 && totals("json") == totals("own") && totals("json") == totals("acme"));
    // Results have a type of the description, too.
    broker.create_topic("totals", 1).unwrap();
    let query = |more: &str| {
        let line = format!("--brokers {servers} --topic acme --until-end --out kafka:totals {described} {more}");
        run("account_totals", line.split_whitespace())
    };
    query("--format protobuf --out-format protobuf --out-message acme.Total").code(0);
    let ended = query("--format protobuf --out-format protobuf --out-message acme.Payment");
    check_contains(ended.error(1), &["the row does not fit the type acme.Payment: "]);
    check_contains(query("--format protobuf --out-format protobuf").error(2), &["--out-message TYPE"]);
    check_contains(query("--format raw").error(2), &["messages in the format raw have no fields"]);
    let wrong =
        format!("produce --brokers {servers} --generate 1 --format protobuf --descriptor {}/acme.desc", here.display());
    assert!(tool(&wrong).unwrap_err().to_string().contains("add --message TYPE"));
    let said = tool(&format!("{wrong} --message acme.None")).unwrap_err().to_string();
    assert!(said.contains("there is no type acme.None; its types are acme.Total, acme.Payment, acme.Odd"), "{said}");
}

/// CSV in topics, between other characters than commas: from a file, through a query, to messages, and back.
#[test]
fn fields_of_messages_may_be_between_other_characters_than_commas() {
    let broker = EmbeddedBroker::start().unwrap();
    let (servers, folder) = (broker.servers(), tempfile::tempdir().unwrap());
    let here = folder.path();
    let totals = |line: &str| {
        let line = format!("--brokers {servers} --until-end {line}");
        run("account_totals", line.split_whitespace())
    };
    for (topic, format) in [("json", ""), ("csv", "--format csv --out-delimiter ;")] {
        broker.create_topic(topic, 2).unwrap();
        let line =
            format!("produce --brokers {servers} --topic {topic} --generate 1000 --start-ms 5000 --seed 4 {format}");
        assert_eq!(tool(&line).unwrap(), 0);
        let out = format!("--topic {topic} --out {}/{topic}.csv", here.display());
        totals(&format!("{out} {}", format.replace("out-delimiter", "delimiter"))).code(0);
    }
    // The same totals, with the character of the messages between them.
    let lines = |name: &str| sorted_lines(&here.join(name));
    assert!(lines("json.csv").len() > 300);
    assert_eq!(lines("csv.csv"), lines("json.csv").iter().map(|line| line.replace(',', ";")).collect::<Vec<_>>());
    // Results in a topic, which another job reads; rejected messages say that the fields are too few.
    broker.create_topic("totals", 1).unwrap();
    totals("--topic json --out kafka:totals --out-format csv --delimiter |").code(0);
    let lines_of = |line: &str| {
        let _ = fs::remove_file(here.join("lines.txt"));
        tool(&format!("consume --brokers {servers} --until-end --out {}/lines.txt {line}", here.display())).unwrap();
        lines("lines.txt")
    };
    let expected: Vec<_> = lines("json.csv").iter().map(|line| line.replace(',', "|")).collect();
    let header = expected.iter().position(|line| line.starts_with("window_start")).unwrap();
    let rows: Vec<_> = expected.into_iter().enumerate().filter(|(at, _)| *at != header).map(|(_, line)| line).collect();
    assert_eq!(lines_of("--topic totals --format raw"), rows);
    let copy = |flags: &str| lines_of(&format!("--topic csv --format csv {flags}"));
    assert!(
        copy("--delimiter ; --out-delimiter ,")
            .contains(&String::from("id,account,merchant,amount_cents,currency,at_ms"))
    );
    let place = here.display();
    assert_eq!(copied(&here.join("lines.txt")), generated(4, 1000));
    copy(&format!("--rejects {place}/rejects.csv"));
    let rejects = fs::read_to_string(here.join("rejects.csv")).unwrap();
    assert_eq!(rejects.matches("it has 1 field where 6 columns are named").count(), 1000, "{rejects}");
    // A flag that would change nothing is refused.
    for (line, flag) in [
        ("produce --topic x --generate 1 --delimiter ;", "--delimiter"),
        ("produce --topic x --generate 1 --format avro --out-delimiter ;", "--out-delimiter"),
        ("consume --topic csv --format raw --out x.csv --delimiter ;", "--delimiter"),
        ("consume --topic csv --out x.ndjson --out-delimiter ;", "--out-delimiter"),
    ] {
        let (command, rest) = line.split_once(' ').unwrap();
        let error = tool(&format!("{command} --brokers {servers} {rest}")).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().starts_with(&format!("{flag}: nothing")), "{error}");
    }
    let ended = totals(&format!("--topic json --out {place}/x.ndjson --delimiter ;"));
    check_contains(ended.error(2), &["--delimiter: nothing that is read or written is CSV"]);
}

#[test]
fn messages_that_are_not_of_the_type_are_rejected_with_their_place_and_the_copy_goes_on() {
    let broker = EmbeddedBroker::start().unwrap();
    let (servers, folder) = (broker.servers(), tempfile::tempdir().unwrap());
    let here = folder.path();
    describe(&here.join("acme.desc"));
    broker.create_topic("bad", 1).unwrap();
    let produce = |first: u64| {
        let line =
            format!("produce --brokers {servers} --topic bad --format protobuf --generate 50 --first-id {first}");
        assert_eq!(tool(&line).unwrap(), 0);
    };
    produce(0);
    let mut long = Vec::new();
    prost::encoding::string::encode(19, &"7".repeat(100_000), &mut long);
    let bad: [(&[u8], &str); 5] = [
        (b"{\"id\":1}", "not a message of the type tidegate.Transaction: "),
        (b"\x12\x02\xff\xff", "not a message of the type tidegate.Transaction: "),
        (b"\x12\x05a", "not a message of the type tidegate.Transaction: "),
        (b"\0\0\0", "no schema id: the message has 3 bytes"),
        (b"\0\0\0\0\x07\x02\x02", "schema id 7: type [1] of the schema, where tidegate.Transaction is [0]"),
    ];
    let mut publisher = Publisher::open(servers, "bad", [], None).unwrap();
    for (value, _) in bad {
        publisher.send(None, value, None).unwrap();
    }
    publisher.flush().unwrap();
    produce(50);
    let copy = |more: &str| {
        let _ = fs::remove_file(here.join("rejects.ndjson"));
        let place = here.display();
        let files = format!("--out {place}/copy.csv --rejects {place}/rejects.ndjson");
        let line = format!("consume --brokers {servers} --until-end --format protobuf {files} {more}");
        assert_eq!(tool(&line).unwrap(), 0);
        let rejects = fs::read_to_string(here.join("rejects.ndjson")).unwrap();
        rejects.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Rejected>>()
    };
    let rejects = copy("--topic bad");
    assert_eq!(copied(&here.join("copy.csv")).into_keys().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!(rejects.len(), bad.len());
    for ((reject, (value, why)), offset) in rejects.iter().zip(bad).zip(50..) {
        assert_eq!((reject.partition, reject.offset), (0, offset));
        assert!(reject.place.starts_with("topic bad at ") && reject.bytes() == value, "{reject:?}");
        assert!(reject.reason.contains(why), "{reject:?}");
    }
    // A reason does not repeat a long value.
    broker.create_topic("odd", 1).unwrap();
    let mut publisher = Publisher::open(servers, "odd", [], None).unwrap();
    publisher.send(None, &long, None).unwrap();
    publisher.flush().unwrap();
    let rejects = copy(&format!("--topic odd --descriptor {}/acme.desc --message acme.Odd", here.display()));
    let [reject] = &*rejects else { panic!("{rejects:?}") };
    assert!(reject.reason.contains("a message of the type acme.Odd is no such record: "), "{}", reject.reason);
    assert!(reject.reason.len() < 2_000 && reject.bytes() == long, "{}", reject.reason.len());
}

#[test]
fn bytes_go_into_a_topic_and_out_of_it_as_they_are() {
    let broker = EmbeddedBroker::start().unwrap();
    let (servers, folder) = (broker.servers(), tempfile::tempdir().unwrap());
    let here = folder.path();
    let mut rng = fastrand::Rng::with_seed(9);
    let line = |rng: &mut fastrand::Rng| {
        let bytes = (0..rng.usize(..30)).map(|_| rng.u8(..)).map(|byte| if byte == b'\n' { b'\r' } else { byte });
        bytes.collect::<Vec<u8>>()
    };
    let lines: Vec<Vec<u8>> = (0..500).map(|_| line(&mut rng)).chain([b"end".to_vec()]).collect();
    let text = lines.join(&b'\n');
    let arguments = |topic: &str| format!("--brokers {servers} --topic {topic} --format raw");
    // The last line may have its end or not.
    for (topic, end) in [("with", "\n"), ("without", "")] {
        broker.create_topic(topic, 1).unwrap();
        fs::write(here.join("in"), [&text, end.as_bytes()].concat()).unwrap();
        let words = arguments(topic);
        assert_eq!(tool(&format!("produce {words} --lines {}/in --header a=b", here.display())).unwrap(), 0);
        let out = here.join(topic);
        let state = format!("--state {}/{topic}-state", here.display());
        assert_eq!(tool(&format!("consume {words} --until-end --out {} {state}", out.display())).unwrap(), 0);
        assert_eq!(fs::read(&out).unwrap(), [&text, &b"\n"[..]].concat(), "{topic}");
        let other = format!("consume --brokers {servers} --topic {topic} --until-end --out {} {state}", out.display());
        let said = tool(&other).unwrap_err().to_string();
        assert!(said.contains("its columns are not those of the rows that are to be written"), "{said}");
    }
    broker.create_topic("whole", 1).unwrap();
    let words = arguments("whole");
    assert_eq!(tool(&format!("produce {words} --whole {}/in", here.display())).unwrap(), 0);
    assert_eq!(tool(&format!("produce {words} --whole {}/with", here.display())).unwrap(), 0);
    assert_eq!(tool(&format!("consume {words} --until-end --out {}/out.csv", here.display())).unwrap(), 0);
    let expected = [&text, &b"\n"[..], &text, b"\n\n"].concat();
    assert_eq!(fs::read(here.join("out.csv")).unwrap(), expected);
    for (wrong, why) in [
        (format!("produce {words} --generate 3"), "name a file by --lines or --whole"),
        (format!("produce --brokers {servers} --lines {}/in", here.display()), "add --format raw"),
        (format!("produce {words} --key id --lines {}/in", here.display()), "messages of --format raw have none"),
        (format!("produce {words} --lines {}/none", here.display()), "cannot read the input"),
        (format!("consume {words} --metadata --out {}/x", here.display()), "leave --metadata out"),
    ] {
        let said = tool(&wrong).unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}
