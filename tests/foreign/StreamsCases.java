import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.TestOutputTopic;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.Initializer;
import org.apache.kafka.streams.kstream.JoinWindows;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.BuiltInDslStoreSuppliers;
import org.apache.kafka.streams.test.TestRecord;

/**
 * Answers the cases with Kafka Streams, in its own TopologyTestDriver: both streams are topics of one task.
 *
 * <p>Arguments: the file of cases, the file to write. Rows are `key start end ids`, and of joins `key time left right`.
 */
public final class StreamsCases {
    private static final List<String> OUTPUTS =
            List.of("updates", "tumbling", "sliding", "sessions", "inner", "left");

    private StreamsCases() {}

    public static void main(String[] arguments) throws IOException {
        Map<Long, Map<String, List<String>>> answers = new LinkedHashMap<>();
        for (Cases.Case data : Cases.read(Path.of(arguments[0]))) {
            answers.put(data.seed(), answer(data));
        }
        Cases.write(Path.of(arguments[1]), answers);
    }

    private static StreamsBuilder topology(Cases.Case data) {
        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, String> left = builder.stream("0");
        KStream<String, String> right = builder.stream("1");
        KGroupedStream<String, String> all = left.merge(right).groupByKey();
        Duration grace = Duration.ofMillis(data.disorder() + data.lateness());
        Duration size = Duration.ofMillis(data.size());

        TimeWindows tumbling = TimeWindows.ofSizeAndGrace(size, grace);
        KTable<Windowed<String>, String> totals = aggregate(all, tumbling);
        rows(totals).to("updates");
        rows(totals.suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()))).to("tumbling");
        TimeWindows sliding = tumbling.advanceBy(Duration.ofMillis(data.slide()));
        rows(aggregate(all, sliding).suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()))).to("sliding");
        SessionWindows sessions = SessionWindows.ofInactivityGapAndGrace(Duration.ofMillis(data.gap()), grace);
        Initializer<String> nothing = () -> "";
        rows(all.windowedBy(sessions)
                        .aggregate(
                                nothing,
                                (key, id, ids) -> and(ids, id),
                                (key, one, other) -> and(one, other),
                                Materialized.with(Serdes.String(), Serdes.String())))
                .to("sessions");

        JoinWindows span = JoinWindows.ofTimeDifferenceAndGrace(Duration.ZERO, Duration.ofMillis(data.disorder()))
                .before(Duration.ofMillis(data.before()))
                .after(Duration.ofMillis(data.after()));
        left.join(right, (one, other) -> one + " " + other, span).to("inner");
        left.leftJoin(right, (one, other) -> one + " " + (other == null ? "-" : other), span).to("left");
        return builder;
    }

    private static String and(String ids, String id) {
        return ids.isEmpty() ? id : ids + "," + id;
    }

    private static KTable<Windowed<String>, String> aggregate(KGroupedStream<String, String> all, TimeWindows windows) {
        return all.windowedBy(windows)
                .aggregate(() -> "", (key, id, ids) -> and(ids, id), Materialized.with(Serdes.String(), Serdes.String()));
    }

    private static KStream<String, String> rows(KTable<Windowed<String>, String> table) {
        return table.toStream().map((window, ids) -> new KeyValue<>(
                window.key() + " " + window.window().start() + " " + window.window().end(), ids == null ? "-" : ids));
    }

    private static Map<String, List<String>> answer(Cases.Case data) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "cases");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "127.0.0.1:1");
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        settings.put(StreamsConfig.DSL_STORE_SUPPLIERS_CLASS_CONFIG, BuiltInDslStoreSuppliers.InMemoryDslStoreSuppliers.class);
        // Left records without a pair are looked for at each record, and not at most once a second of the wall clock.
        settings.put(StreamsConfig.InternalConfig.EMIT_INTERVAL_MS_KSTREAMS_OUTER_JOIN_SPURIOUS_RESULTS_FIX, 0L);
        Map<String, List<String>> rows = new LinkedHashMap<>();
        try (TopologyTestDriver driver = new TopologyTestDriver(topology(data).build(), settings, Instant.EPOCH)) {
            List<TestInputTopic<String, String>> inputs = new ArrayList<>();
            for (String name : List.of("0", "1")) {
                inputs.add(driver.createInputTopic(name, new StringSerializer(), new StringSerializer()));
            }
            long last = 0;
            for (Cases.Event event : data.events()) {
                inputs.get(event.partition()).pipeInput(event.key(), event.id(), event.at());
                last = Math.max(last, event.at());
            }
            take(driver, rows, "");
            // There is no end of the input: a record that is far ahead brings out what still waits.
            inputs.get(1).pipeInput("end", "end", last + 1_000_000_000L);
            take(driver, rows, " at the end");
        }
        return rows;
    }

    private static void take(TopologyTestDriver driver, Map<String, List<String>> rows, String when) {
        for (String name : OUTPUTS) {
            TestOutputTopic<String, String> output =
                    driver.createOutputTopic(name, new StringDeserializer(), new StringDeserializer());
            List<String> found = new ArrayList<>();
            for (TestRecord<String, String> row : output.readRecordsToList()) {
                boolean isJoin = name.equals("inner") || name.equals("left");
                String time = isJoin ? " " + row.timestamp() : "";
                if (!row.key().startsWith("end")) {
                    found.add(row.key() + time + " " + row.value());
                }
            }
            rows.put(name + when, found);
        }
    }
}
