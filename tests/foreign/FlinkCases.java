import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.functions.KeySelector;
import org.apache.flink.api.java.tuple.Tuple4;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.KeyedStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.co.ProcessJoinFunction;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.EventTimeSessionWindows;
import org.apache.flink.streaming.api.windowing.assigners.SlidingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.assigners.WindowAssigner;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;
import org.apache.flink.util.OutputTag;

/**
 * Answers the cases with Flink, in a cluster within this process. Each case has a source of its own, whose watermark is
 * told after each record: the least over both streams of the greatest time less the disorder.
 *
 * <p>Arguments: the file of cases, the file to write. Rows are `key start end ids`, and of joins `key time left right`.
 */
public final class FlinkCases {
    /** Cases in one job. */
    private static final int TOGETHER = 10;

    /** Rows by seed and name: the tasks of the cluster are threads of this process. */
    private static final Map<String, Queue<String>> ROWS = new ConcurrentHashMap<>();

    private FlinkCases() {}

    /** The watermarks of a case. Its records are tuples: partition, key, time, id. */
    static final class Times implements WatermarkGenerator<Tuple4<Integer, String, Long, String>> {
        private final long disorder;
        private final long[] greatest;

        Times(long disorder, int partitions) {
            this.disorder = disorder;
            greatest = new long[partitions];
            Arrays.fill(greatest, Long.MIN_VALUE);
        }

        @Override
        public void onEvent(Tuple4<Integer, String, Long, String> event, long time, WatermarkOutput output) {
            greatest[event.f0] = Math.max(greatest[event.f0], time);
            long least = Arrays.stream(greatest).min().getAsLong();
            if (least > Long.MIN_VALUE) {
                // As BoundedOutOfOrdernessWatermarks has it: a watermark says that no record at its own time follows.
                output.emitWatermark(new Watermark(least - disorder - 1));
            }
        }

        @Override
        public void onPeriodicEmit(WatermarkOutput output) {}
    }

    static final class Key implements KeySelector<Tuple4<Integer, String, Long, String>, String> {
        @Override
        public String getKey(Tuple4<Integer, String, Long, String> event) {
            return event.f1;
        }
    }

    static final class Rows
            extends ProcessWindowFunction<Tuple4<Integer, String, Long, String>, String, String, TimeWindow> {
        @Override
        public void process(
                String key,
                Context at,
                Iterable<Tuple4<Integer, String, Long, String>> events,
                Collector<String> out) {
            List<String> ids = new ArrayList<>();
            events.forEach(event -> ids.add(event.f3));
            out.collect(key + " " + at.window().getStart() + " " + at.window().getEnd() + " " + String.join(",", ids));
        }
    }

    static final class Pairs
            extends ProcessJoinFunction<
                    Tuple4<Integer, String, Long, String>, Tuple4<Integer, String, Long, String>, String> {
        @Override
        public void processElement(
                Tuple4<Integer, String, Long, String> left,
                Tuple4<Integer, String, Long, String> right,
                Context at,
                Collector<String> out) {
            out.collect(left.f1 + " " + at.getTimestamp() + " " + left.f3 + " " + right.f3);
        }
    }

    static final class Keep<T> implements MapFunction<T, T> {
        private final String name;

        Keep(String name) {
            this.name = name;
        }

        @Override
        public T map(T row) {
            Object text = row instanceof Tuple4<?, ?, ?, ?> event ? event.f3 : row;
            ROWS.computeIfAbsent(name, any -> new ConcurrentLinkedQueue<>()).add(text.toString());
            return row;
        }
    }

    public static void main(String[] arguments) throws Exception {
        List<Cases.Case> cases = Cases.read(Path.of(arguments[0]));
        Configuration settings = new Configuration();
        settings.set(TaskManagerOptions.NETWORK_MEMORY_MIN, MemorySize.ofMebiBytes(64));
        settings.set(TaskManagerOptions.NETWORK_MEMORY_MAX, MemorySize.ofMebiBytes(64));
        settings.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(16));
        for (int first = 0; first < cases.size(); first += TOGETHER) {
            StreamExecutionEnvironment env = StreamExecutionEnvironment.createLocalEnvironment(1, settings);
            for (Cases.Case data : cases.subList(first, Math.min(cases.size(), first + TOGETHER))) {
                build(env, data);
            }
            env.execute("cases");
        }
        Map<Long, Map<String, List<String>>> answers = new LinkedHashMap<>();
        for (Cases.Case data : cases) {
            Map<String, List<String>> rows = new LinkedHashMap<>();
            for (String name : List.of("tumbling", "sliding", "sessions", "inner", "late")) {
                rows.put(name, new ArrayList<>(ROWS.getOrDefault(data.seed() + name, new ConcurrentLinkedQueue<>())));
            }
            answers.put(data.seed(), rows);
        }
        Cases.write(Path.of(arguments[1]), answers);
    }

    private static void build(StreamExecutionEnvironment env, Cases.Case data) {
        List<Tuple4<Integer, String, Long, String>> events = new ArrayList<>();
        data.events().forEach(event -> events.add(Tuple4.of(event.partition(), event.key(), event.at(), event.id())));
        int partitions = 1 + data.events().stream().mapToInt(Cases.Event::partition).max().orElse(0);
        long disorder = data.disorder();
        DataStream<Tuple4<Integer, String, Long, String>> all = env.fromData(
                        events, Types.TUPLE(Types.INT, Types.STRING, Types.LONG, Types.STRING))
                .assignTimestampsAndWatermarks(
                        WatermarkStrategy.<Tuple4<Integer, String, Long, String>>forGenerator(
                                        at -> new Times(disorder, partitions))
                                .withTimestampAssigner((event, before) -> event.f2));
        KeyedStream<Tuple4<Integer, String, Long, String>, String> keyed = all.keyBy(new Key(), Types.STRING);
        long size = data.size();
        window(keyed, data, "tumbling", TumblingEventTimeWindows.of(Duration.ofMillis(size)));
        window(keyed, data, "sliding", SlidingEventTimeWindows.of(
                Duration.ofMillis(size), Duration.ofMillis(data.slide())));
        window(keyed, data, "sessions", EventTimeSessionWindows.withGap(Duration.ofMillis(data.gap())));
        side(all, 0).intervalJoin(side(all, 1))
                .between(Duration.ofMillis(-data.before()), Duration.ofMillis(data.after()))
                .process(new Pairs(), Types.STRING)
                .map(new Keep<String>(data.seed() + "inner"))
                .returns(Types.STRING)
                .sinkTo(new DiscardingSink<>());
    }

    private static KeyedStream<Tuple4<Integer, String, Long, String>, String> side(
            DataStream<Tuple4<Integer, String, Long, String>> all, int partition) {
        return all.filter(event -> event.f0 == partition).keyBy(new Key(), Types.STRING);
    }

    private static void window(
            KeyedStream<Tuple4<Integer, String, Long, String>, String> keyed,
            Cases.Case data,
            String name,
            WindowAssigner<Object, TimeWindow> windows) {
        OutputTag<Tuple4<Integer, String, Long, String>> late =
                new OutputTag<>("late", Types.TUPLE(Types.INT, Types.STRING, Types.LONG, Types.STRING));
        SingleOutputStreamOperator<String> rows = keyed.window(windows)
                .allowedLateness(Duration.ofMillis(data.lateness()))
                .sideOutputLateData(late)
                .process(new Rows(), Types.STRING);
        rows.map(new Keep<String>(data.seed() + name)).returns(Types.STRING).sinkTo(new DiscardingSink<>());
        if (name.equals("tumbling")) {
            rows.getSideOutput(late)
                    .map(new Keep<Tuple4<Integer, String, Long, String>>(data.seed() + "late"))
                    .returns(Types.TUPLE(Types.INT, Types.STRING, Types.LONG, Types.STRING))
                    .sinkTo(new DiscardingSink<>());
        }
    }
}
