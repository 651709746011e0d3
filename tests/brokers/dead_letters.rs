//! Poison messages of many kinds are in the topic of dead letters once each, with their places, whatever kills the job,
//! and late messages are in theirs; `tidegate redrive` sends each back once, as it was, whatever kills that.
//!
//! `TIDEGATE_POISON` sets the number of poison messages (10000 by default).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::broker::{Broker, high_watermarks};
use crate::foreign::{Read, read};
use crate::run::{run, start};
use fastrand::Rng;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const ACCOUNT_TOTALS: &str = "account_totals";
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

/// The time of all transactions that are not late.
const AT_MS: i64 = 1_767_323_040_000;

/// The number of kinds of poison.
const KINDS: usize = 15;

/// Returns the value of a poison message of a kind; `None` is a tombstone.
fn poison(kind: usize, id: usize) -> Option<Vec<u8>> {
    let json = |id: &str, amount: &str, at_ms: &str, rest: &str| {
        let text = format!(
            r#"{{"id":{id},"account":"a","merchant":"m","amount_cents":{amount},"currency":"EUR","at_ms":{at_ms}{rest}}}"#
        );
        text.into_bytes()
    };
    let (id, at_ms) = (&*id.to_string(), &*AT_MS.to_string());
    let good = json(id, "1", at_ms, "");
    Some(match kind {
        // Truncated, wrong types, binary, no value, huge.
        0 => good[..good.len() / 2].to_vec(),
        1 => json("\"one\"", "[]", at_ms, ""),
        2 => [0, 0xff, 0xfe, 0x80, 1, 2].into_iter().chain(id.bytes()).collect(),
        3 => return None,
        4 => vec![b'x'; 20_000],
        // Bad UTF-8 in a text, a missing field, an overflow, a byte order mark, a field twice.
        5 => good.iter().map(|byte| if *byte == b'm' { 0xc3 } else { *byte }).collect(),
        6 => format!(r#"{{"id":{id},"account":"a"}}"#).into_bytes(),
        7 => json(id, "99999999999999999999999", at_ms, ""),
        8 => [b"\xef\xbb\xbf", &good[..]].concat(),
        9 => json(id, "1", at_ms, r#","id":7"#),
        // Deep nesting, no number, nothing, an impossible time, null.
        10 => json(id, &format!("{}{}", "[".repeat(500), "]".repeat(500)), at_ms, ""),
        11 => json(id, "NaN", at_ms, ""),
        12 => Vec::new(),
        13 => json(id, "1", "9000000000000000", ""),
        _ => b"null".to_vec(),
    })
}

/// A message that was sent, by its partition and offset.
type Sent = BTreeMap<(i32, i64), Read>;

/// Sends messages to four partitions, good ones among the poison; returns the poison, and those that are late: they are
/// an hour older than one before them in their partition.
fn send(broker: &Broker, topic: &str, count: usize, rng: &mut Rng) -> (Sent, Sent) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &broker.servers).set("enable.idempotence", "true").set("linger.ms", "2");
    let producer: BaseProducer = config.create().unwrap();
    let (mut next, mut sent, mut late) = ([0_i64; 4], Sent::new(), Sent::new());
    let (mut bad, mut good, mut begun) = (0, 0, [false; 4]);
    while bad < count {
        let is_good = rng.u8(0..10) == 0;
        let partition = rng.usize(0..4);
        let is_old = is_good && rng.u8(0..3) == 0;
        let at_ms = if is_old { AT_MS - 3_600_000 } else { AT_MS };
        let value = if is_good {
            good += 1;
            let text = format!(
                r#"{{"id":{good},"account":"g{}","merchant":"m","amount_cents":1,"currency":"EUR","at_ms":{at_ms}}}"#,
                good % 7
            );
            Some(text.into_bytes())
        } else {
            bad += 1;
            poison(bad % KINDS, bad)
        };
        let key = [None, Some(Vec::new()), Some(vec![0xff, 0]), Some(format!("k{bad}").into_bytes())];
        let mut headers = Vec::new();
        if bad % 3 > 0 {
            headers.push((String::from("n"), Some(bad.to_string().into_bytes())));
            headers.push((String::from("null"), None));
            headers.push((String::from("n"), Some(vec![0xfe, 0xff])));
        }
        let (offset, at_ms) = (next[partition], Some(AT_MS + bad as i64));
        next[partition] += 1;
        // An old record is not late before there is a newer one.
        let is_late = is_old && begun[partition];
        begun[partition] |= is_good && !is_old;
        let partition = partition as i32;
        let message = Read { partition, offset, at_ms, key: key[rng.usize(0..4)].clone(), headers, value };
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition);
        (record.key, record.payload) = (message.key.as_deref(), message.value.as_deref());
        record.timestamp = at_ms;
        if !message.headers.is_empty() {
            record.headers = Some(message.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: value.as_ref() })
            }));
        }
        let mut unsent = Some(record);
        while let Some(record) = unsent.take() {
            match producer.send(record) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    producer.poll(Duration::from_millis(10));
                    unsent = Some(record);
                }
                Err((why, _)) => panic!("{why}"),
            }
        }
        if !is_good {
            sent.insert((partition, offset), message);
        } else if is_late {
            late.insert((partition, offset), message);
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    assert!(good > late.len() && !late.is_empty());
    (sent, late)
}

/// Checks that each message that a step could not use is a dead letter once, as it was, with its place.
fn check_letters(letters: &[Read], sent: &Sent, (topic, step, reason): (&str, &str, &str)) {
    let mut found = BTreeMap::new();
    for letter in letters {
        let text = |name: &str| letter.header(&format!("tidegate.error.{name}")).unwrap();
        assert_eq!((text("topic"), text("step")), (topic.to_owned(), step.to_owned()));
        assert!(!text("reason").is_empty() && text("reason").starts_with(reason), "{}", text("reason"));
        let place: (i32, i64) = (text("partition").parse().unwrap(), text("offset").parse().unwrap());
        assert_eq!(found.insert(place, letter), None, "{place:?} is there twice");
        let original = sent.get(&place).unwrap_or_else(|| panic!("{place:?} can be used"));
        assert_eq!((&letter.key, &letter.value), (&original.key, &original.value), "{place:?}");
        assert_eq!(text("timestamp").parse().ok(), original.at_ms);
        let own = letter.headers.len() - 6;
        assert_eq!(&letter.headers[..own], original.headers, "{place:?}");
        assert!(letter.headers[own..].iter().all(|(name, _)| name.starts_with("tidegate.error.")));
    }
    let missing: Vec<_> = sent.keys().filter(|place| !found.contains_key(place)).collect();
    assert!(missing.is_empty(), "{step}: {} of {} are missing: {missing:?}", missing.len(), sent.len());
}

/// Returns what a message is but for its place, to compare multisets.
type Content = (Option<i64>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>, Option<Vec<u8>>);

fn contents<'a>(messages: impl IntoIterator<Item = &'a Read>) -> Vec<Content> {
    let content = |message: &'a Read| {
        let Read { at_ms, key, headers, value, .. } = message.clone();
        (at_ms, key, headers, value)
    };
    let mut contents: Vec<Content> = messages.into_iter().map(content).collect();
    contents.sort();
    contents
}

fn kill_in_between(program: &str, arguments: &[String], broker: &Broker, topic: &str, rng: &mut Rng, total: usize) {
    for part in 1..4 {
        let wanted = total * part / 5;
        let mut running = start(program, arguments);
        let mut has_ended = false;
        running.wait_until("messages are written", |_| {
            (high_watermarks(&broker.servers, topic).values().sum::<i64>() as usize >= wanted).then_some(())
        });
        std::thread::sleep(Duration::from_millis(rng.u64(0..100)));
        has_ended |= !running.is_alive();
        running.kill();
        let ended = running.end_or_killed();
        assert!(has_ended || ended.was_killed(), "{}", ended.stderr);
        println!("{program} part {part}: {}", if has_ended { "had ended" } else { "was killed" });
    }
}

fn words(line: &str, folder: &Path) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
}

#[test]
fn poison_is_dead_letters_once_each_and_is_sent_back_once_each_whatever_is_killed() {
    let Some(broker) = Broker::shared() else { return };
    let count = std::env::var("TIDEGATE_POISON").map_or(10_000, |count| count.parse().unwrap());
    let seed = std::env::var("TIDEGATE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("TIDEGATE_SEED={seed}");
    let (mut rng, folder) = (Rng::with_seed(seed), tempfile::tempdir().unwrap());
    let (topic, dead, repaired) = (broker.topic(4), broker.topic(3), broker.topic(4));
    let (late_letters, late_repaired) = (broker.topic(2), broker.topic(4));
    let (sent, late) = send(broker, &topic, count, &mut rng);
    assert_eq!(sent.len(), count);

    let servers = &broker.servers;
    let line = format!(
        "--brokers {servers} --topic {topic} --rejects kafka:{dead} --out {{}}/out.csv --state {{}}/state --until-end \
         --in-flight 1MiB -w 2 --max-ahead 365000d --late kafka:{late_letters} --late-as messages"
    );
    let line = words(&line, folder.path());
    kill_in_between(ACCOUNT_TOTALS, &line, broker, &dead, &mut rng, count);
    run(ACCOUNT_TOTALS, &line).code(0);
    check_letters(&read(servers, &dead), &sent, (&topic, "transactions", ""));
    let reason = "late (event time 2026-01-02T02:04:00.000Z, watermark 2026-01-02T03:03:58.000Z)";
    check_letters(&read(servers, &late_letters), &late, (&topic, "totals", reason));
    let back = format!("redrive --brokers {servers} --topic {late_letters} --to {late_repaired}");
    let dry = run(TIDEGATE, words(&format!("{back} --dry-run"), folder.path()));
    let told = format!("{} dead letters would be sent in all", late.len());
    assert!(dry.code(0).stdout().contains(&told), "{}", dry.stdout());
    run(TIDEGATE, words(&back, folder.path())).code(0);
    assert!(contents(&read(servers, &late_repaired)) == contents(late.values()), "seed {seed}");

    // All that is sent back is as it was sent.
    let redrive = |rest: &str| words(&format!("redrive --brokers {servers} --topic {dead} {rest}"), folder.path());
    let dry = run(TIDEGATE, redrive("--dry-run"));
    let told =
        format!("{count} dead letters would be sent to topic {topic}\n{count} dead letters would be sent in all");
    assert!(dry.code(0).stdout().starts_with(&told), "{}", dry.stdout());
    assert_eq!(read(servers, &repaired), []);
    let to = redrive(&format!("--to {repaired}"));
    kill_in_between(TIDEGATE, &to, broker, &repaired, &mut rng, count);
    run(TIDEGATE, &to).code(0);
    assert!(contents(&read(servers, &repaired)) == contents(sent.values()), "seed {seed}");
    let again = run(TIDEGATE, &to);
    assert!(again.code(0).stdout().starts_with("0 dead letters sent in all"), "{}", again.stdout());
    assert!(again.stderr.contains("passed by the group before"), "{}", again.stderr);

    // To the topic that they came from, in parts.
    let before = read(servers, &topic).len();
    let mut parts = 0;
    for part in
        ["--partition 0", "--partition 1 --partition 2 --offsets ..5", "--partition 1 --partition 2 --offsets 5.."]
    {
        let ended = run(TIDEGATE, redrive(part));
        let said = ended.code(0).stdout().to_owned();
        let sent: usize = said.lines().last().unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(sent > 0, "{part}: {said}");
        parts += sent;
    }
    assert_eq!(parts, count);
    let after = read(servers, &topic);
    assert_eq!(after.len(), before + count);
}

#[test]
fn what_cannot_be_sent_back_is_told_and_nothing_is_sent() {
    let Some(broker) = Broker::shared() else { return };
    let (dead, target) = (broker.topic(1), broker.topic(1));
    broker.send(&dead, 0, [String::from("no dead letter")]);
    let folder = tempfile::tempdir().unwrap();
    let servers = &broker.servers;
    let redrive = |rest: &str| run(TIDEGATE, words(&format!("redrive --brokers {servers} {rest}"), folder.path()));
    for (line, code, parts) in [
        (format!("--topic {dead}"), 1, vec!["its headers name no topic", &dead, "partition 0, offset 0", "--to"]),
        (format!("--topic {dead} --dry-run"), 1, vec!["its headers name no topic"]),
        (format!("--topic {dead} --to {dead}"), 2, vec!["cannot be sent to their own topic"]),
        (format!("--topic {dead} --to no-such-topic"), 1, vec!["no-such-topic"]),
        (String::from("--topic no-such-topic --to t"), 1, vec!["no-such-topic"]),
        (format!("--topic {dead} --partition 7"), 2, vec!["there is no partition 7"]),
    ] {
        let ended = redrive(&line);
        crate::run::check_contains(ended.error(code), &parts);
    }
    redrive(&format!("--topic {dead} --offsets 3..3")).code(2);
    // Times of letters are those at which they were written.
    let none = redrive(&format!("--topic {dead} --to {target} --until 2020-01-01T00:00:00Z"));
    assert!(none.code(0).stdout().starts_with("0 dead letters sent in all"), "{}", none.stdout());
    assert!(none.stderr.contains("1 dead letters were left out"), "{}", none.stderr);
    assert_eq!(read(servers, &target), []);
    let one = redrive(&format!("--topic {dead} --to {target} --since 2020-01-01T00:00:00Z"));
    assert!(one.code(0).stdout().starts_with(&format!("1 dead letters sent to topic {target}")), "{}", one.stdout());
    assert_eq!(read(servers, &target).len(), 1);
}
