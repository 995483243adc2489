package redflag;

import java.io.IOException;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.Stores;

/** The tutorial's four checks on Kafka Streams: exactly once, a user's state in RocksDB with its changelog. */
public final class Main {
    static final String USERS = "users";

    private Main() {}

    public static void main(String[] arguments) throws IOException {
        Settings settings = Settings.load();
        KafkaStreams streams = new KafkaStreams(topology(settings, Forest.read(settings.forest())), config(settings));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR) {
                Runtime.getRuntime().halt(1); // the harness looks whether the process has ended
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    /** Transactions come keyed by their user, so that a task has all of a user's, and nothing is repartitioned. */
    static Topology topology(Settings settings, Forest forest) {
        Serde<byte[]> bytes = Serdes.ByteArray();
        Serde<Decider.Output> messages = Serdes.serdeFrom((topic, output) -> output.message(), (topic, value) -> null);
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(Stores.keyValueStoreBuilder(
                        Stores.persistentKeyValueStore(USERS), Serdes.String(), UserState.SERDE)
                .withCachingEnabled()
                .withLoggingEnabled(Map.of()));
        builder.stream(settings.transactionsTopic(), Consumed.with(bytes, bytes))
                .processValues(() -> new Decider(settings, forest), USERS)
                .to((key, output, context) -> output.topic(), Produced.with(bytes, messages));
        return builder.build();
    }

    /** The library's defaults, but for the promise and the threads. */
    static Properties config(Settings settings) {
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, settings.applicationId());
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, settings.brokers());
        config.put(StreamsConfig.STATE_DIR_CONFIG, settings.stateDir());
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, settings.threads());
        return config;
    }
}
