package redflag;

import java.io.File;

/** What the harness sets, from the environment: the names are those of Redflag's own settings where it has them. */
record Settings(
        String brokers,
        String applicationId,
        String transactionsTopic,
        String alertsTopic,
        String classifiedTopic,
        String invalidTopic,
        File forest,
        String stateDir,
        int threads) {

    static Settings load() {
        return new Settings(
                given("KAFKA_BROKERS"),
                given("BENCH_GROUP"),
                given("TRANSACTIONS_TOPIC"),
                given("ALERTS_TOPIC"),
                given("CLASSIFIED_TOPIC"),
                given("INVALID_TOPIC"),
                new File(given("BENCH_FOREST_JSON")),
                given("BENCH_SCRATCH"),
                Integer.parseInt(given("STREAM_THREADS")));
    }

    private static String given(String name) {
        String value = System.getenv(name);
        if (value == null || value.isEmpty()) {
            throw new IllegalArgumentException(name + " is not set");
        }
        return value;
    }
}
