//! `orders_enriched` writes what an independent program computes and reads: topics written by Python's Avro, processes
//! that are killed and change in number, an output that Python reads as a table.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::registry::Parts;
use crate::run::{TIDEGATE, check_contains, run, start};
use nix::sys::signal::Signal;
use serde_json::Value;
use tidegate::source::generator::{Generator, Transaction};

/// Rows of a table, by the text of their keys.
type Table = BTreeMap<String, Value>;

impl Parts {
    /// Writes customers and orders; returns the enriched orders that they come to. `rate` is a number of changes a
    /// second; 0 is as fast as possible.
    fn write_orders(&self, name: &str, seed: u32, count: u32, rate: u32) -> Table {
        let numbers = [seed, count, rate].map(|number| number.to_string());
        let [orders, customers] = ["orders", "customers"].map(|topic| format!("{topic}-{name}"));
        let words = ["orders", &self.broker.servers, &self.registry.url, &orders, &customers];
        let words = words.into_iter().chain(numbers.iter().map(String::as_str));
        serde_json::from_str(&self.python.run(&words.collect::<Vec<_>>())).unwrap()
    }

    fn read_orders(&self, topic: &str) -> Table {
        serde_json::from_str(&self.python.run(&["read_table", &self.broker.servers, &self.registry.url, topic]))
            .unwrap()
    }

    fn create_orders(&self, name: &str) {
        self.broker.create(&format!("orders-{name}"), 3);
        self.broker.create(&format!("customers-{name}"), 2);
    }

    /// Returns the arguments of the query; `{}` stands for the folder.
    fn orders_line(&self, name: &str, folder: &Path, rest: &str) -> Vec<String> {
        let line = format!(
            "--brokers {} --registry {} --topic orders-{name} --customers customers-{name} --out kafka:enriched-{name} \
             --state {{}}/state --epoch 10ms --snapshot-every 200ms --progress off {rest}",
            self.broker.servers, self.registry.url
        );
        line.split_whitespace().map(|word| word.replace("{}", folder.to_str().unwrap())).collect()
    }
}

#[test]
fn the_topic_of_enriched_orders_is_the_table_that_python_computes_whatever_is_killed() {
    let Some(parts) = Parts::shared() else { return };
    let (name, folder) = ("killed", tempfile::tempdir().unwrap());
    parts.create_orders(name);
    let expected = std::thread::scope(|scope| {
        let writer = scope.spawn(|| parts.write_orders(name, 7, 20_000, 1_500));
        // Ten incarnations are killed, each of another number of processes than the one before.
        for round in 0_u64..10 {
            let processes = [1, 2, 3][round as usize % 3];
            let mut words: Vec<String> = if processes > 1 {
                ["up", "-n", &processes.to_string(), "--"].map(str::to_owned).to_vec()
            } else {
                Vec::new()
            };
            words.push("orders_enriched".to_owned());
            words.extend(parts.orders_line(name, folder.path(), if processes == 1 { "-w 2" } else { "" }));
            let running = start(TIDEGATE, words);
            let moment = Duration::from_millis(600 + round * 137 % 900);
            let ended = running.killed_after(moment);
            assert!(ended.was_killed(), "{:?}\n{}", ended.status, ended.stderr);
        }
        writer.join().unwrap()
    });
    assert!(expected.len() > 1_000, "{}", expected.len());
    let mut running = start("orders_enriched", parts.orders_line(name, folder.path(), "-w 2"));
    running.wait_until("all orders with their customers", |_| {
        let found = parts.read_orders(&format!("enriched-{name}"));
        (found == expected).then_some(())
    });
    running.signal(Signal::SIGTERM);
    running.end().code(143);
    // What a clean stop leaves is the same.
    assert_eq!(parts.read_orders(&format!("enriched-{name}")), expected);
}

#[test]
fn the_first_results_have_their_customers_and_a_missing_registry_is_named() {
    let Some(parts) = Parts::shared() else { return };
    let (name, folder) = ("at-once", tempfile::tempdir().unwrap());
    parts.create_orders(name);
    let expected = parts.write_orders(name, 3, 3_000, 0);
    run("orders_enriched", parts.orders_line(name, folder.path(), "--until-end")).code(0);
    assert_eq!(parts.read_orders(&format!("enriched-{name}")), expected);
    let without = parts.orders_line(name, folder.path(), "--until-end").into_iter().skip(4).collect::<Vec<_>>();
    let without = ["--brokers".to_owned(), parts.broker.servers.clone()].into_iter().chain(without);
    check_contains(run("orders_enriched", without).error(2), &["needs a schema registry", "--registry URL"]);
}

#[test]
fn transactions_are_produced_and_consumed_in_avro() {
    let Some(parts) = Parts::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let common =
        format!("--brokers {} --registry {} --topic avro --format avro", parts.broker.servers, parts.registry.url);
    let typed = |line: &str| {
        let line = format!("{line} {common}");
        let here = folder.path().to_str().unwrap();
        line.split_whitespace().map(|word| word.replace("{}", here)).collect::<Vec<_>>()
    };
    run(TIDEGATE, typed("produce --generate 500 --seed 4 --start-ms 7000")).code(0);
    run(TIDEGATE, typed("consume --until-end --out {}/copy.csv")).code(0);
    let mut rows: Vec<Transaction> = csv::Reader::from_path(folder.path().join("copy.csv"))
        .unwrap()
        .into_deserialize()
        .map(Result::unwrap)
        .collect();
    rows.sort_by_key(|row| row.id);
    assert_eq!(rows, Generator::new(4).start_ms(7000).take(500).collect::<Vec<_>>());
    // What Python reads is the same, for it is a table by account here: the last transaction of each.
    let table = parts.read_orders("avro");
    let mut last = BTreeMap::new();
    for row in rows {
        last.insert(row.account.to_string(), serde_json::to_value(row).unwrap());
    }
    assert_eq!(table, last);
}
