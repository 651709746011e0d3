//! Deliberate mistakes in the engine's sources, each with the test that finds it.
//!
//! A guarantee sometimes depends on one word: a sync, a lock, a comparison. Only removing it shows whether a test would
//! find that. It is always checked that each text is in its file exactly once, and that each test exists. Each mutation
//! needs a build, so they are tried only on request:
//!
//! ```text
//! TIDEGATE_MUTATION=all cargo test --test mutations -- --nocapture      # all of them
//! TIDEGATE_MUTATION=synced cargo test --test mutations -- --nocapture   # those whose name has this in it
//! ```
//!
//! They are tried in a copy of the sources below `target/mutations`, which is built there: it needs some GB, and the
//! tests need what they always need (for example `strace`). Each test must first pass without the mutation. Faults that
//! need the engine's own switch are in `faults`.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mistake, and the test that finds it.
struct Mutation {
    name: &'static str,
    file: &'static str,
    /// Text to be replaced; it is in the file once.
    text: &'static str,
    /// Replacement.
    instead: &'static str,
    /// The file of the test.
    tests: &'static str,
    /// The function of the test.
    test: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "what leaves a window stays in its sums",
        file: "src/stream/counted.rs",
        text: "self.count == 0 || self.sum.unmerge(&part.sum)",
        instead: "self.count == 0 || part.count > 0",
        tests: "tests/windows.rs",
        test: "windows_that_overlap_have_what_has_entered_and_not_left",
    },
    Mutation {
        name: "what cannot be removed from a sum is taken for removed",
        file: "src/stream/aggregate/real_sum.rs",
        text: "        self.add_words(other.first, &negative.collect::<Vec<_>>());\n        other.not_finite == 0",
        instead: "        self.add_words(other.first, &negative.collect::<Vec<_>>());\n        true",
        tests: "src/stream/aggregate/tests.rs",
        test: "counts_and_sums",
    },
    Mutation {
        name: "panes of a window are looked for in half of their range",
        file: "src/stream/panes.rs",
        text: "WindowAssigner::Sliding { size, .. } => end.plus(Span::saturating_from_millis(*size)),",
        instead: "WindowAssigner::Sliding { size, .. } => end.plus(Span::saturating_from_millis(*size / 2)),",
        tests: "src/stream/panes.rs",
        test: "a_slot_has_the_windows_that_cover_its_times",
    },
    Mutation {
        name: "the memory of a large window is kept",
        file: "src/stream/arrange/spare_maps.rs",
        text: "self.usual = rows.max(self.usual / 2);",
        instead: "self.usual = rows.max(self.usual);",
        tests: "src/stream/arrange/spare_maps.rs",
        test: "memory_of_large_windows_is_released",
    },
    Mutation {
        name: "windows that have closed are counted as open",
        file: "src/stream/arrange/open_ranges.rs",
        text: "self.insert(windows, windows.end_after(closed), last);",
        instead: "self.insert(windows, first, last);\n                return;",
        tests: "src/stream/arrange/open_ranges.rs",
        test: "open_windows_are_those_of_all_panes_in_order_and_once",
    },
    Mutation {
        name: "records that come out of order wait for those that came in order",
        file: "src/stream/waiting_records.rs",
        text: "(Some(first), Some(Reverse(other))) => other < first,",
        instead: "(Some(first), Some(Reverse(other))) => other > first,",
        tests: "src/stream/waiting_records.rs",
        test: "records_wait_in_order_whatever_order_they_come_in",
    },
    Mutation {
        name: "a worker that waits for the disk is not woken",
        file: "src/stream/queued_bytes.rs",
        text: "self.0.fetch_sub(bytes, Ordering::AcqRel) > Self::MOST",
        instead: "self.0.fetch_sub(bytes, Ordering::AcqRel) > 2 * Self::MOST",
        tests: "src/stream/queued_bytes.rs",
        test: "one_that_is_faster_than_the_disk_stops_and_is_woken",
    },
    Mutation {
        name: "rows that are in segments and in memory are told as exact",
        file: "src/stream/arrange/store.rs",
        text: "exact: parts <= 1",
        instead: "exact: true",
        tests: "tests/open_windows.rs",
        test: "rows_are_at_most_as_many_as_reported_where_snapshots_are_taken_between",
    },
    Mutation {
        name: "rows of a window are those of one worker",
        file: "src/status/windows.rs",
        text: "open[at].rows += window.rows;",
        instead: "open[at].rows = window.rows;",
        tests: "tests/open_windows.rs",
        test: "open_windows_are_those_of_a_naive_count_on_any_number_of_workers",
    },
    Mutation {
        name: "names of a job are written to the terminal as they are",
        file: "src/cli/top/frame.rs",
        text: "if letter.is_control() { '\\u{fffd}' } else { letter }",
        instead: "letter",
        tests: "src/cli/top/frame.rs",
        test: "names_of_a_job_write_nothing_to_the_terminal_by_themselves",
    },
    Mutation {
        name: "names are parts of a picture",
        file: "src/cli/plot/svg.rs",
        text: "'<' => escaped.push_str(\"&lt;\"),",
        instead: "",
        tests: "src/cli/plot/svg.rs",
        test: "a_picture_has_a_point_for_each_value_and_names_are_text",
    },
    Mutation {
        name: "a file does not know by which value it is read",
        file: "src/source/file/mod.rs",
        text: "Some(self.number)",
        instead: "Some(self.number).filter(|_| false)",
        tests: "tests/conservation.rs",
        test: "a_file_whose_source_each_worker_makes_is_not_read_by_each",
    },
    Mutation {
        name: "the graph of a query leads through no scope",
        file: "src/job/graph.rs",
        text: "(_, true, false) => FlowPoint::ScopeInput(address, port),",
        instead: "(_, true, false) => FlowPoint::Operator(address),",
        tests: "src/job/graph.rs",
        test: "an_iteration_is_passed_through_by_what_flows_through_it",
    },
    Mutation {
        name: "a sample of the history has the latencies of all epochs since the start",
        file: "src/job/history.rs",
        text: "ring.latencies = latencies;",
        instead: "drop(latencies);",
        tests: "src/job/history.rs",
        test: "a_sample_has_the_figures_of_its_time_and_latencies_of_its_interval",
    },
    Mutation {
        name: "pages may load scripts from anywhere",
        file: "src/view/http/respond.rs",
        text: "default-src 'none'; script-src 'self';",
        instead: "default-src 'none'; script-src 'self' 'unsafe-inline';",
        tests: "tests/page.rs",
        test: "the_page_is_for_clients_that_accept_html_and_refuses_foreign_scripts",
    },
    Mutation {
        name: "any token is the token of a job",
        file: "src/view/http/access.rs",
        text: "&& self.is(given.trim_ascii())",
        instead: "&& !given.trim_ascii().is_empty()",
        tests: "tests/http.rs",
        test: "a_job_with_a_token_answers_who_has_it",
    },
    Mutation {
        name: "a second token beside the right one is not looked at",
        file: "src/view/http/respond.rs",
        text: "(Some(header), None) if token.is_in(header.as_bytes())",
        instead: "(Some(header), _) if token.is_in(header.as_bytes())",
        tests: "src/view/http/tests.rs",
        test: "without_the_token_only_what_is_public_is_answered",
    },
    Mutation {
        name: "a job without a token listens where other machines reach it",
        file: "src/view/http/endpoint.rs",
        text: "places.iter().any(is_beyond_loopback)",
        instead: "places.is_empty()",
        tests: "tests/http.rs",
        test: "a_job_that_anybody_could_ask_is_refused_unless_that_is_wanted",
    },
    Mutation {
        name: "probes tell the cause to anybody",
        file: "src/job/monitor.rs",
        text: "Some(cause) if asked.trusted =>",
        instead: "Some(cause) if asked.trusted || !asked.trusted =>",
        tests: "src/job/monitor.rs",
        test: "without_the_token_a_probe_tells_no_cause",
    },
    Mutation {
        name: "a client may take any time until its first request",
        file: "src/view/http/tracker.rs",
        text: "Phase::New | Phase::Header => Some(state.since + HEADER_TIME),",
        instead: "Phase::New | Phase::Header => Some(state.since + 20 * HEADER_TIME),",
        tests: "src/view/http/tls_tests.rs",
        test: "a_handshake_that_stalls_is_cut_off_and_takes_nobodys_place",
    },
    Mutation {
        name: "what is compressed waits for more",
        file: "src/view/http/gzip.rs",
        text: "        encoder.flush()?;\n",
        instead: "",
        tests: "src/view/http/gzip.rs",
        test: "each_piece_leaves_at_once_and_together_they_are_the_text",
    },
    Mutation {
        name: "administrative requests go without the user's properties",
        file: "src/source/kafka/admin.rs",
        text: "own.configure(&[], &[])?.create()",
        instead: "TopicConfig::new(&own.brokers, &own.topic).configure(&[], &[])?.create()",
        tests: "tests/kafka/security.rs",
        test: "an_output_is_created_over_tls_by_who_may_create_it",
    },
    Mutation {
        name: "rows of a partition whose places go back are taken for sorted",
        file: "src/stream/gathered_rows.rs",
        text: "run.rows.last().is_none_or(|((before, _), _)| *before < row.0);",
        instead: "run.rows.last().is_none_or(|((before, _), _)| *before != row.0);",
        tests: "src/stream/gathered_rows.rs",
        test: "runs_of_partitions_are_what_sorting_gives",
    },
    Mutation {
        name: "messages of records in flight are never dropped",
        file: "src/source/message_store.rs",
        text: "*needed = first.unwrap_or(u64::MAX).max(*needed);",
        instead: "*needed = first.unwrap_or(0).min(*needed);",
        tests: "src/stream/letters.rs",
        test: "messages_are_dropped_when_their_epochs_are_complete",
    },
    Mutation {
        name: "a chunk of a file is passed on though its event times were not checked",
        file: "src/source/file/reader.rs",
        text: "        self.judge(carry, intake)?;",
        instead: "        if self.first_carry().is_none() {\n            self.judge(carry, intake)?;\n        }",
        tests: "src/source/file/tests.rs",
        test: "workers_together_read_what_one_reads_csv",
    },
    Mutation {
        name: "of a message there are as many letters as late records",
        file: "src/stream/letters.rs",
        text: "            if is_repeated {",
        instead: "            if is_repeated && letters.is_empty() {",
        tests: "tests/kafka/messages.rs",
        test: "late_records_are_the_messages_that_they_were_read_as_whichever_worker_judged_them",
    },
    Mutation {
        name: "checked changes of an epoch are compared in another order than that of offsets",
        file: "src/stream/checked_table.rs",
        text: "changes.sort_unstable_by_key(|change| change.at);",
        instead: "changes.sort_unstable_by_key(|change| std::cmp::Reverse(change.at));",
        tests: "tests/kafka/tables.rs",
        test: "changes_that_do_not_fit_are_those_of_a_naive_fold_whatever_crashes",
    },
    Mutation {
        name: "a pause counts as time in which a process that has yet to start was called",
        file: "src/job/cluster/mod.rs",
        text: "RunningTime::with_gaps_of(CONNECT_TIMEOUT)",
        instead: "RunningTime::with_gaps_of(6 * CONNECT_TIMEOUT)",
        tests: "tests/network/pauses.rs",
        test: "a_process_that_pauses_while_it_waits_for_process_0_to_start_goes_on",
    },
    Mutation {
        name: "a tie of an exact sum is rounded up",
        file: "src/stream/aggregate/real_sum.rs",
        text: "if half && (below || mantissa & 1 == 1) {",
        instead: "if half {",
        tests: "src/stream/aggregate/real_sum.rs",
        test: "sums_and_means_are_the_nearest_numbers_to_exact_fractions",
    },
    Mutation {
        name: "a long row of csv is searched for commas, whatever is between its fields",
        file: "src/source/csv/rows.rs",
        text: "(_, byte) if byte == delimiter => ScanState::FieldStart,",
        instead: "(_, b',') => ScanState::FieldStart,",
        tests: "src/source/csv/rows.rs",
        test: "the_end_of_a_row_is_found_in_pieces_of_any_size",
    },
    Mutation {
        name: "fields that have another delimiter in them are written without quotes",
        file: "src/sink/csv/line_serializer.rs",
        text: "|byte: &u8| *byte == delimiter || ",
        instead: "|byte: &u8| *byte == b',' || ",
        tests: "src/sink/csv.rs",
        test: "bytes_are_those_of_the_csv_crate",
    },
    Mutation {
        name: "a frame of rows has one record less",
        file: "src/stream/over.rs",
        text: "while passed.count() - 1 > preceding {",
        instead: "while passed.count() > preceding.max(1) {",
        tests: "tests/keyed_state.rs",
        test: "what_is_emitted_is_a_function_of_the_records",
    },
    Mutation {
        name: "a discarding window keeps what it has emitted",
        file: "src/stream/count_trigger.rs",
        text: "if self.discarding {",
        instead: "if self.discarding && is_final {",
        tests: "tests/semantics.rs",
        test: "records_are_counted_in_the_order_of_event_time",
    },
    Mutation {
        name: "a channel acknowledges what is taken, not what is published",
        file: "src/source/channel.rs",
        text: "take_while(|(taken, _)| *taken <= epoch)",
        instead: "take_while(|(taken, _)| *taken >= Epoch(0) || *taken <= epoch)",
        tests: "tests/resume.rs",
        test: "a_channel_asks_for_what_no_state_has_and_nothing_is_lost_or_doubled",
    },
    Mutation {
        name: "what has another name begins anew",
        file: "src/durable/recovery/input.rs",
        text: "scan.manifests.values_mut().flatten().for_each(|manifest| changes.apply_to_manifest(manifest));",
        instead: "",
        tests: "tests/changed_programs/main.rs",
        test: "all_that_has_another_name_continues_what_it_was",
    },
    Mutation {
        name: "rows that were written anew are not named",
        file: "src/job/start.rs",
        text: "step.segments = rows.migration",
        instead: "let _ = rows.migration",
        tests: "tests/changed_programs/main.rs",
        test: "rows_of_changed_types_are_converted_for_every_kind_of_step",
    },
    Mutation {
        name: "an accumulator goes to the aggregate in its place, not to that of its name",
        file: "src/durable/codec/rearrangement.rs",
        text: "picked.push(PickedSum::Stored(number, plan));",
        instead: "picked.push(PickedSum::Stored(picked.len().min(number), plan));",
        tests: "tests/changed_programs/aggregates.rs",
        test: "aggregates_that_stay_go_on_in_any_order_in_every_kind_of_windows",
    },
    Mutation {
        name: "names of aggregates are no part of the fingerprint of rows",
        file: "src/durable/codec/postcard.rs",
        text: "names => fingerprint([\"shape\", &shape.text, &types, names]),",
        instead: "_ => fingerprint([\"shape\", &shape.text, &types]),",
        tests: "tests/changed_programs/aggregates.rs",
        test: "aggregates_of_one_type_are_told_apart_by_their_names_within_others_too",
    },
    Mutation {
        name: "a row of a collection counts once in a window, however often it is there",
        file: "src/stream/collection/windows.rs",
        text: "add(&mut total, &repeated(one, *times));",
        instead: "add(&mut total, &repeated(one, (*times).min(1)));",
        tests: "tests/collections.rs",
        test: "collections_are_right_at_every_epoch",
    },
    Mutation {
        name: "bytes of JSON that are no text are replaced by others",
        file: "src/source/kafka/decoders.rs",
        text: "Err(_) => serde_json::from_slice(json),",
        instead: "Err(_) => serde_json::from_str(&String::from_utf8_lossy(json)),",
        tests: "src/source/kafka/decoders.rs",
        test: "json_that_is_no_text_is_what_the_library_makes_of_its_bytes",
    },
    Mutation {
        name: "a snapshot does not know which records have found a pair since",
        file: "src/stream/join/side.rs",
        text: "Unsealed::Match => 0,",
        instead: "Unsealed::Match => return None,",
        tests: "tests/joins.rs",
        test: "crashes_change_nothing",
    },
    Mutation {
        name: "the last version of a key is removed though records may need it",
        file: "src/stream/join/versions.rs",
        text: "*at <= from).saturating_sub(1)",
        instead: "*at <= from)",
        tests: "tests/joins.rs",
        test: "joins_with_versions_are_functions_of_the_records",
    },
    Mutation {
        name: "a snapshot does not know which records wait for the watermark to pass them",
        file: "src/stream/join/backward.rs",
        text: "        self.seal_recent();\n",
        instead: "",
        tests: "src/stream/join/backward.rs",
        test: "rows_are_those_of_all_records_whatever_is_sealed_loaded_and_removed",
    },
    Mutation {
        name: "records at a time are taken as if it had passed them",
        file: "src/stream/join/time_wheel.rs",
        text: "if time < to { each(time, item) }",
        instead: "if time <= to { each(time, item) }",
        tests: "src/stream/join/time_wheel.rs",
        test: "items_are_taken_when_their_time_has_passed",
    },
    Mutation {
        name: "left records are alone in a window that has right ones",
        file: "src/stream/join/windowed.rs",
        text: "if no_right && self.kind.emits_left_alone()",
        instead: "if self.kind.emits_left_alone()",
        tests: "tests/joins.rs",
        test: "joins_in_windows_are_functions_of_the_records",
    },
    Mutation {
        name: "a refused property is told with its value, a secret one too",
        file: "src/source/kafka/properties.rs",
        text: "if is_secret(key) { HIDDEN } else { value }",
        instead: "if false { HIDDEN } else { value }",
        tests: "tests/kafka/security.rs",
        test: "a_secret_of_a_file_or_the_environment_opens_a_topic_and_is_in_no_message",
    },
    Mutation {
        name: "a wait for a registry does not hear that the job is to stop",
        file: "src/format/registry/http.rs",
        text: "let asked = job.stop_asked_at()?;",
        instead: "let asked = job.stop_asked_at().filter(|_| false)?;",
        tests: "tests/brokers/schema_registry/errors.rs",
        test: "a_job_that_waits_for_a_registry_stops_when_it_is_told_to_and_goes_on_with_what_it_waited_for",
    },
    Mutation {
        name: "a producer with a rate does not wait for brokers that are slower",
        file: "src/cli/produce.rs",
        text: "publisher.in_flight() >= most",
        instead: "publisher.in_flight() == usize::MAX",
        tests: "tests/kafka/tools.rs",
        test: "a_rate_that_brokers_cannot_keep_slows_producers_down",
    },
    Mutation {
        name: "a gap is passed in the midst of an epoch's input",
        file: "src/source/partition_tracker.rs",
        text: "if partition.found_at.is_some() || partition.next != partition.committed {",
        instead: "if partition.found_at.is_some() {",
        tests: "tests/kafka/positions.rs",
        test: "a_gap_that_opens_under_a_reader_is_skipped_in_an_epoch_of_its_own",
    },
    Mutation {
        name: "expired records of the journal are left out of a replay",
        file: "src/source/kafka/reader/gaps.rs",
        text: "self.check_start(&self.partitions[at], next)?;",
        instead: "",
        tests: "tests/kafka/positions.rs",
        test: "a_gap_is_skipped_when_asked_for_and_is_counted_and_replayed",
    },
    Mutation {
        name: "another client goes on after a record that nobody has taken",
        file: "src/source/kafka/reader/reconnect.rs",
        text: "intake.next(handle).max(held)));",
        instead: "intake.next(handle).max(held) + 1));",
        tests: "src/source/kafka/reader/reconnect.rs",
        test: "whenever_a_client_is_replaced_each_record_is_taken_once_and_in_order",
    },
    Mutation {
        name: "a client that has lost one broker is taken for one that has lost all",
        file: "src/source/kafka/reader/reconnect.rs",
        text: "read.clone().all(|partition| partition.lost_since",
        instead: "read.clone().any(|partition| partition.lost_since",
        tests: "src/source/kafka/reader/reconnect.rs",
        test: "a_client_is_replaced_only_if_all_that_is_still_read_is_lost_and_another_one_is_answered",
    },
    Mutation {
        name: "the creation of a topic is not repeated when its request is lost",
        file: "src/sink/kafka/topics.rs",
        text: "code => is_transient(code) && since < CREATE_PATIENCE,",
        instead: "code => is_transient(code) && since > CREATE_PATIENCE,",
        tests: "tests/brokers/doubtful_commits.rs",
        test: "a_topic_is_created_though_the_first_request_is_lost_and_arrives_late",
    },
    Mutation {
        name: "a property is one of two with its second name",
        file: "src/source/kafka/properties.rs",
        text: ".map_or(key, |(_, name)| name)",
        instead: ".map_or(key, |_| key)",
        tests: "src/source/kafka/client.rs",
        test: "a_property_wins_over_the_default_by_each_of_its_names",
    },
    Mutation {
        name: "two partitions of a pattern get one number",
        file: "src/source/kafka/partition_numbers.rs",
        text: "slot.find(|number| !taken.contains(number));",
        instead: "slot.next();",
        tests: "src/source/kafka/partition_numbers.rs",
        test: "partitions_of_one_slot_have_different_numbers",
    },
    Mutation {
        name: "a snapshot forgets the topics of partitions that were found before",
        file: "src/stream/input.rs",
        text: "bound.topic.clone().or(known)",
        instead: "bound.topic.clone().filter(|_| known.is_none())",
        tests: "tests/resume.rs",
        test: "topics_of_a_pattern_are_summed_once_wherever_the_job_crashes",
    },
    Mutation {
        name: "a topic that was made again goes on for the one that the state knows",
        file: "src/source/kafka/partition_numbers.rs",
        text: "id.is_some_and(|id| id != known)",
        instead: "id.is_some_and(|id| id.is_empty() && id != known)",
        tests: "src/source/kafka/partition_numbers.rs",
        test: "a_topic_of_another_id_is_another_one",
    },
    Mutation {
        name: "each partition fetches ahead as if it were alone",
        file: "src/source/kafka/prefetch.rs",
        text: "(BUDGET / partitions.max(1)).clamp(LEAST, MOST);",
        instead: "if partitions == 0 { LEAST } else { MOST };",
        tests: "tests/kafka_partitions.rs",
        test: "a_thousand_partitions_are_fetched_within_a_budget_and_none_starves",
    },
    Mutation {
        name: "a second row of a key is written",
        file: "src/stream/unique_keys.rs",
        text: "if count > 1 && diff > 0",
        instead: "if count < 0 && diff > 0",
        tests: "tests/kafka/rows.rs",
        test: "a_second_row_of_a_key_ends_the_job_before_its_epoch_is_written",
    },
    Mutation {
        name: "dead letters are sent back without the offsets behind them",
        file: "src/sink/kafka/redrive.rs",
        text: "publisher.send_offsets(&offsets, &group)?;",
        instead: "let _ = (&offsets, &group);",
        tests: "tests/brokers/dead_letters.rs",
        test: "poison_is_dead_letters_once_each_and_is_sent_back_once_each_whatever_is_killed",
    },
    Mutation {
        name: "no file is synced",
        file: "src/durable/disk.rs",
        text: "self.file.sync_data()",
        instead: "Ok(())",
        tests: "tests/power_loss.rs",
        test: "what_a_job_asks_of_the_kernel_is_safe_from_a_loss_of_power",
    },
    Mutation {
        name: "no directory is synced",
        file: "src/durable/disk.rs",
        text: "fs::File::open(directory)?.sync_all()",
        instead: "fs::File::open(directory).map(drop)",
        tests: "tests/power_loss.rs",
        test: "what_a_job_asks_of_the_kernel_is_safe_from_a_loss_of_power",
    },
    Mutation {
        name: "a new directory is not synced into its parent",
        file: "src/durable/disk.rs",
        text: "self.sync_directory(parent(directory))",
        instead: "Ok(())",
        tests: "tests/power_loss.rs",
        test: "what_a_job_asks_of_the_kernel_is_safe_from_a_loss_of_power",
    },
    Mutation {
        name: "locks are always free",
        file: "src/durable/disk.rs",
        text: "match file.try_lock() {",
        instead: "match Ok::<(), fs::TryLockError>(()) {",
        tests: "src/durable/tests/state.rs",
        test: "a_state_whose_lock_file_was_removed_is_still_in_use",
    },
    Mutation {
        name: "the identity is not locked",
        file: "src/durable/state/directory.rs",
        text: "if second.is_none() && !take_over {",
        instead: "if false {",
        tests: "src/durable/tests/state.rs",
        test: "a_state_whose_lock_file_was_removed_is_still_in_use",
    },
    Mutation {
        name: "who finds a file missing does not ask whether it was overtaken",
        file: "src/durable/mod.rs",
        text: "    if is_gone\n        && let Err(over) = still_current()",
        instead: "    if false\n        && let Err(over) = still_current()",
        tests: "src/durable/tests/state.rs",
        test: "a_file_that_is_gone_is_explained_by_a_later_life_if_there_is_one",
    },
    Mutation {
        name: "a replay decodes anew what was rejected for now",
        file: "src/source/kafka/mapping.rs",
        text: "if replayed.rejected_for_now.binary_search(&offset).is_ok() {",
        instead: "if false {",
        tests: "tests/kafka/reader.rs",
        test: "what_was_rejected_for_now_is_rejected_at_its_replay_and_what_was_accepted_is_not",
    },
    Mutation {
        name: "a journal that was perhaps never synced is accepted where it is",
        file: "src/durable/state/scan.rs",
        text: "written.retain(|id, _| id.incarnation >= last);",
        instead: "written.retain(|id, _| id.incarnation > last);",
        tests: "tests/lying_disk.rs",
        test: "a_sync_that_fails_ends_the_job_and_what_it_dropped_is_never_built_upon",
    },
    Mutation {
        name: "records of incarnations are not bounded",
        file: "src/durable/state/incarnations.rs",
        text: "names.retain(|name| incarnation_of_claim(name).is_none() && is_obsolete_record(name, next));",
        instead: "names.clear();",
        tests: "src/durable/tests/state.rs",
        test: "starts_that_fail_leave_no_more_than_a_few_records_and_what_counts_stays",
    },
    Mutation {
        name: "a start reads its results from the beginning",
        file: "src/sink/file/growing_checksum.rs",
        text: "if self.length.is_multiple_of(STEP) {",
        instead: "if self.length.is_multiple_of(STEP * 1000) {",
        tests: "tests/file_sinks.rs",
        test: "a_start_reads_no_more_of_large_results_than_of_small_ones",
    },
    Mutation {
        name: "a start does not verify the end of its results",
        file: "src/sink/file/stateful_file.rs",
        text: "if (sum.length(), sum.checksum()) != (commit.length, commit.checksum) {",
        instead: "if sum.length() != commit.length {",
        tests: "tests/file_sinks.rs",
        test: "damage_of_the_end_of_large_results_is_refused_by_a_start",
    },
    Mutation {
        name: "an earlier incarnation appends to results",
        file: "src/sink/file.rs",
        text: "stateful.still_current()?;",
        instead: "",
        tests: "tests/file_sinks.rs",
        test: "an_earlier_life_asks_before_it_appends_to_a_file_that_is_a_later_ones",
    },
    Mutation {
        name: "nothing is waited for that is read first",
        file: "src/job/first_phase.rs",
        text: "first.all(|driver| driver.has_reached_initial_end())",
        instead: "first.next().is_some()",
        tests: "tests/read_first.rs",
        test: "what_is_read_first_is_complete_for_all_others_on_any_number_of_workers_and_processes",
    },
    Mutation {
        name: "a recovered job takes what is read first for read",
        file: "src/job/first_phase.rs",
        text: "if sources::was_read_first(driver.name(), base, replay) {",
        instead: "if base.is_some() {",
        tests: "tests/read_first.rs",
        test: "a_stop_while_only_some_is_read_does_not_end_the_phase",
    },
    Mutation {
        name: "a table is by time",
        file: "src/stream/input.rs",
        text: "if mode.is_table { intake.timeless() } else { intake }",
        instead: "intake",
        tests: "tests/kafka/tables.rs",
        test: "a_topic_is_a_table_by_offset_whole_before_others_begin_on_any_number_of_workers",
    },
    Mutation {
        name: "one merge a manifest",
        file: "src/job/commit.rs",
        text: "self.merger.submit(move || while own.merge_next() {});",
        instead: "self.merger.submit(move || {\n own.merge_next();\n own.live_segments().merging = false;\n });",
        tests: "src/job/commit/tests.rs",
        test: "segments_stay_few_on_eight_workers_and_three_steps_over_3600_snapshots",
    },
    Mutation {
        name: "a merge does not give up",
        file: "src/durable/compaction/merge.rs",
        text: "if cursors[index].is_at_end_of_block() && merging.cancelled.load(Acquire) {",
        instead: "if false {",
        tests: "src/durable/compaction/tests.rs",
        test: "a_merge_that_is_given_up_ends_at_the_next_block_and_leaves_no_file",
    },
    Mutation {
        name: "floors are in no manifest",
        file: "src/job/commit.rs",
        text: "(source.1, source.2) = (watermark, activation_watermarks);",
        instead: "(source.1, source.2) = (watermark, activation_watermarks.into_iter().take(0).collect());",
        tests: "src/job/commit/tests.rs",
        test: "a_manifest_has_what_its_parts_say_of_sources_and_sinks",
    },
    Mutation {
        name: "a partition that goes on has no floor",
        file: "src/source/partition_tracker.rs",
        text: "unresolved_since: (*activation_watermark > progress.watermark).then_some(epoch),",
        instead: "unresolved_since: None,",
        tests: "src/source/memory.rs",
        test: "a_floor_decides_until_the_partition_itself_has_come_so_far",
    },
    Mutation {
        name: "the earliest record is read where the next one is gone",
        file: "src/source/kafka/consumer.rs",
        text: "(\"auto.offset.reset\", \"error\")",
        instead: "(\"auto.offset.reset\", \"earliest\")",
        tests: "tests/kafka/reader.rs",
        test: "records_that_are_dropped_while_they_are_still_to_be_read_end_the_job",
    },
    Mutation {
        name: "a registry that does not answer rejects messages",
        file: "src/source/kafka/mapping.rs",
        text: "(Err(DecodeError::Failed(error)), _) => return Err(error),",
        instead: "(Err(DecodeError::Failed(error)), _) => intake.reject(epoch, slot, found, &error.to_string())?,",
        tests: "tests/brokers/schema_registry/mod.rs",
        test: "a_registry_that_is_away_rejects_nothing_it_is_waited_for_and_then_the_job_fails",
    },
    Mutation {
        name: "an incompatible schema is registered",
        file: "src/format/registry/registration.rs",
        text: "registry.check_compatible(subject, *kind, text)?;",
        instead: "",
        tests: "tests/brokers/schema_registry/mod.rs",
        test: "a_schema_that_is_missing_or_incompatible_fails_before_anything_is_written",
    },
    Mutation {
        name: "a described message of another type is read",
        file: "src/format/described.rs",
        text: "if indexes != self.indexes {",
        instead: "if false {",
        tests: "src/format/described.rs",
        test: "transactions_are_what_generated_code_reads_and_writes",
    },
    Mutation {
        name: "a last line without its end lacks a byte in its message",
        file: "src/cli/produce.rs",
        text: "message.pop_if(|last| *last == b'\\n');",
        instead: "message.pop();",
        tests: "tests/kafka/formats.rs",
        test: "bytes_go_into_a_topic_and_out_of_it_as_they_are",
    },
    Mutation {
        name: "Avro data are nested without limit",
        file: "src/format/avro/read.rs",
        text: "if self.depth == DEEPEST {",
        instead: "if false {",
        tests: "src/format/avro/tests/mod.rs",
        test: "types_that_contain_themselves_end_at_a_depth",
    },
    Mutation {
        name: "a missing topic has no code",
        file: "src/source/kafka/topic_lookup.rs",
        text: "error.with_source(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)).help(help)",
        instead: "error.help(help)",
        tests: "src/source/kafka/topic_lookup.rs",
        test: "what_is_missing_has_a_kind_and_a_code",
    },
    Mutation {
        name: "the headers of a message are not kept in the journal",
        file: "src/source/kafka/message.rs",
        text: "headers: self.owned_headers(),\n        }",
        instead: "headers: Vec::new(),\n        }",
        tests: "tests/kafka/messages.rs",
        test: "random_messages_are_seen_as_they_were_sent_at_first_and_at_each_replay",
    },
    Mutation {
        name: "--max-ahead is not in the fingerprint",
        file: "src/job/run.rs",
        text: "flags.insert(\"max-ahead\".into(), written(self.options.max_ahead));",
        instead: "",
        tests: "tests/resume.rs",
        test: "a_flag_that_affects_output_and_has_changed_is_refused_where_something_is_to_be_replayed",
    },
    Mutation {
        name: "the number of an attempt to come together is not compared",
        file: "src/job/cluster/handshake.rs",
        text: " || said.number != terms.number",
        instead: "",
        tests: "src/job/cluster/handshake/tests.rs",
        test: "who_means_another_process_another_attempt_or_another_purpose_is_refused",
    },
    Mutation {
        name: "nobody is ever silent",
        file: "src/job/cluster/heartbeat.rs",
        text: "if silent > self.timeout { Err(unheard_for(self.timeout)) } else { Ok(()) }",
        instead: "Ok(())",
        tests: "src/job/cluster/heartbeat.rs",
        test: "who_is_heard_is_silent_no_more_and_who_is_not_is_told_after_the_timeout",
    },
    Mutation {
        name: "what outputs know of journals is not compared",
        file: "src/durable/recovery.rs",
        text: "        check_ends(found, claim, base_epoch, &taken[earlier..])?;\n",
        instead: "",
        tests: "tests/damage.rs",
        test: "the_end_of_a_journal_of_two_processes_is_refused_where_it_was_published_and_is_not_whole",
    },
    Mutation {
        name: "an event is on time at the moment at which it is over",
        file: "src/stream/live.rs",
        text: "filter(|expires| *expires > mark)",
        instead: "filter(|expires| *expires >= mark)",
        tests: "tests/collections.rs",
        test: "collections_are_right_at_every_epoch",
    },
    Mutation {
        name: "events that live for a time are over when the stream ends",
        file: "src/stream/window_operator.rs",
        text: "{ mark.watermark } else { mark.reached() }",
        instead: "{ mark.watermark } else { mark.watermark }",
        tests: "tests/collections.rs",
        test: "collections_are_right_at_every_epoch",
    },
    Mutation {
        name: "differences that cancel out circulate",
        file: "src/stream/collection/iteration.rs",
        text: "step(&LoopScope { scope }, now).consolidate()",
        instead: "step(&LoopScope { scope }, now)",
        tests: "tests/collections.rs",
        test: "an_iteration_that_needs_its_limit_is_within_it",
    },
    Mutation {
        name: "a token is read once",
        file: "src/view/http/access.rs",
        text: "if self.is_regular && now.duration_since(current.read_at) >= TOKEN_INTERVAL {",
        instead: "if false {",
        tests: "src/view/http/tests.rs",
        test: "another_token_in_the_file_is_the_token_and_a_file_without_one_changes_nothing",
    },
    Mutation {
        name: "wrong tokens cost nothing",
        file: "src/view/http/respond.rs",
        text: "tokio::time::sleep(WRONG_TOKEN_TIME * guesses).await;",
        instead: "",
        tests: "src/view/http/tests.rs",
        test: "guesses_are_counted_wait_and_end_their_connection",
    },
    Mutation {
        name: "a token goes wherever a state says",
        file: "src/cli/job_access.rs",
        text: "self.token_file.is_some() && !is_this_machine(&address)",
        instead: "false",
        tests: "src/cli/job_access.rs",
        test: "a_token_goes_to_this_machine_or_to_a_host_that_the_user_names",
    },
    Mutation {
        name: "a delimiter that is between no fields is taken",
        file: "src/cli/query.rs",
        text: "        self.delimiters.check_used()?;\n",
        instead: "",
        tests: "tests/queries.rs",
        test: "fields_may_be_between_other_characters_than_commas",
    },
    Mutation {
        name: "messages of csv have commas between their fields",
        file: "src/source/csv/single_row.rs",
        text: "splitter.split(bytes, start, delimiter.byte())",
        instead: "splitter.split(bytes, start, b',')",
        tests: "src/source/kafka/decoders.rs",
        test: "a_csv_row_has_the_fields_of_the_record_or_the_given_columns",
    },
    Mutation {
        name: "open windows that are not listed are not counted",
        file: "src/status/windows.rs",
        text: "self.open.len() as u64 + self.more\n",
        instead: "self.open.len() as u64\n",
        tests: "src/job/prometheus.rs",
        test: "a_page_has_each_figure_once_with_its_lines_beneath",
    },
    Mutation {
        name: "signals come while their handlers are registered",
        file: "src/cli/stop.rs",
        text: "thread_swap_mask(SigmaskHow::SIG_BLOCK)",
        instead: "thread_swap_mask(SigmaskHow::SIG_UNBLOCK)",
        tests: "tests/signals.rs",
        test: "a_request_that_comes_while_a_program_begins_to_listen_is_no_less_heard",
    },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_mutation_still_applies_and_is_found_where_it_is_tried() {
    let mut wrong = Vec::new();
    for Mutation { name, file, text, instead, tests, test } in MUTATIONS {
        let found = fs::read_to_string(root().join(file)).unwrap_or_default().matches(text).count();
        if found != 1 || text == instead {
            wrong.push(format!("{name}: {file} has `{text}` {found} times, and should have it once"));
        }
        let found = fs::read_to_string(root().join(tests)).unwrap_or_default();
        if !found.contains(&format!("fn {test}()")) {
            wrong.push(format!("{name}: {tests} has no test {test}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let names: BTreeSet<_> = MUTATIONS.iter().map(|mutation| mutation.name).collect();
    assert_eq!(names.len(), MUTATIONS.len(), "two mutations have one name");
    if let Ok(asked) = std::env::var("TIDEGATE_MUTATION") {
        try_those_with(&asked);
    }
}

/// Copies the sources that have changed, so that no more is built than necessary.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if name == "target" || name == ".git" {
            continue;
        }
        let to = to.join(name);
        if from.is_dir() {
            copy(&from, &to);
        } else if fs::read(&to).ok() != Some(fs::read(&from).unwrap()) {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Runs a test in the copy; returns `true` if it passed, `None` if it did not run, and the output.
fn run(tree: &Path, tests: &str, test: &str) -> (Option<bool>, String) {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(tree).env("CARGO_TARGET_DIR", tree.with_file_name("build")).arg("test");
    match tests.strip_prefix("tests/").and_then(|file| file.split(['.', '/']).next()) {
        Some(program) => command.args(["--test", program]),
        None => command.arg("--lib"),
    };
    let ended = command.args([test, "--", "--nocapture"]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    // Other output may stand between the test's name and its outcome.
    let ran = said.contains("running 1 test");
    (ran.then(|| ended.status.success()), said)
}

/// Tries the mutations whose names contain this text.
fn try_those_with(asked: &str) {
    let tree = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("mutations").join("tree");
    copy(root(), &tree);
    let chosen: Vec<_> = MUTATIONS.iter().filter(|mutation| asked == "all" || mutation.name.contains(asked)).collect();
    assert!(!chosen.is_empty(), "no mutation has `{asked}` in its name");
    for (tests, test) in chosen.iter().map(|chosen| (chosen.tests, chosen.test)).collect::<BTreeSet<_>>() {
        let (passed, said) = run(&tree, tests, test);
        assert_eq!(passed, Some(true), "without a mutation {test} says:\n{said}");
    }
    let mut missed = Vec::new();
    for Mutation { name, file, text, instead, tests, test } in chosen {
        let path = tree.join(file);
        let sound = fs::read_to_string(&path).unwrap();
        fs::write(&path, sound.replacen(text, instead, 1)).unwrap();
        let (passed, said) = run(&tree, tests, test);
        fs::write(&path, sound).unwrap();
        println!("{name}: {}", if passed == Some(false) { format!("found by {test}") } else { "MISSED".into() });
        if passed != Some(false) {
            missed.push(format!("{name}: {test} says:\n{said}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}
