import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** The cases that `tests/foreign_engines.rs` has written, one JSON object a line, and the rows that an engine answers. */
final class Cases {
    private Cases() {}

    /** A record: `partition` is the stream that it belongs to, 0 or 1. Times are milliseconds since 1970. */
    record Event(int partition, String key, long at, String id) {}

    /** A case; events are in the order of their arrival. */
    record Case(
            long seed,
            long disorder,
            long lateness,
            long size,
            long slide,
            long gap,
            long before,
            long after,
            List<Event> events) {}

    static List<Case> read(Path file) throws IOException {
        ObjectMapper mapper = new ObjectMapper();
        List<Case> cases = new ArrayList<>();
        for (String line : Files.readAllLines(file)) {
            JsonNode node = mapper.readTree(line);
            List<Event> events = new ArrayList<>();
            for (JsonNode event : node.get("events")) {
                String key = "k" + event.get(1).asText();
                events.add(new Event(event.get(0).asInt(), key, event.get(2).asLong(), event.get(3).asText()));
            }
            cases.add(new Case(
                    node.get("seed").asLong(),
                    node.get("disorder").asLong(),
                    node.get("lateness").asLong(),
                    node.get("size").asLong(),
                    node.get("slide").asLong(),
                    node.get("gap").asLong(),
                    node.get("before").asLong(),
                    node.get("after").asLong(),
                    events));
        }
        return cases;
    }

    /** Writes a line for each case: its seed, and the rows of each output by name. */
    static void write(Path file, Map<Long, Map<String, List<String>>> answers) throws IOException {
        ObjectMapper mapper = new ObjectMapper();
        try (BufferedWriter out = Files.newBufferedWriter(file)) {
            for (Map.Entry<Long, Map<String, List<String>>> answer : answers.entrySet()) {
                ObjectNode node = mapper.createObjectNode();
                node.put("seed", answer.getKey());
                node.set("rows", mapper.valueToTree(answer.getValue()));
                out.write(mapper.writeValueAsString(node));
                out.newLine();
            }
        }
    }
}
