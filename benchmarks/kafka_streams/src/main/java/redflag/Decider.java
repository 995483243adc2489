package redflag;

import java.util.Set;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueStore;

/** Decides on one transaction after the other: reads the user's state, checks, and takes the transaction in. */
final class Decider implements FixedKeyProcessor<byte[], byte[], Decider.Output> {
    /** A message and the topic that it goes to. */
    record Output(String topic, byte[] message) {}

    private static final double HIGH_AMOUNT = 400;
    private static final Set<String> FLAGGED = Set.of("XYZ_Merchant", "UnknownShop");

    private final Settings settings;
    private final Forest forest;
    private FixedKeyProcessorContext<byte[], Output> context;
    private KeyValueStore<String, UserState> users;

    Decider(Settings settings, Forest forest) {
        this.settings = settings;
        this.forest = forest;
    }

    @Override
    public void init(FixedKeyProcessorContext<byte[], Output> context) {
        this.context = context;
        this.users = context.getStateStore(Main.USERS);
    }

    @Override
    public void process(FixedKeyRecord<byte[], byte[]> record) {
        byte[] message = record.value();
        Output output;
        try {
            output = decide(Transaction.parse(message, record.timestamp()), message);
        } catch (Transaction.InvalidException error) {
            output = new Output(settings.invalidTopic(), message);
        }
        context.forward(record.withValue(output));
    }

    private Output decide(Transaction txn, byte[] message) {
        UserState user = users.get(txn.user());
        if (user == null) {
            user = new UserState();
        }
        double depth = forest.depth((float) txn.amount(), user.inHour(txn.at()));
        Decision decision = check(txn, user, forest.isAnomaly(depth));
        user.update(txn);
        users.put(txn.user(), user);
        String topic = decision.fraudulent() ? settings.alertsTopic() : settings.classifiedTopic();
        return new Output(topic, decision.appendedTo(message, forest.risk(depth), txn.hasId() ? null : place()));
    }

    /** The four checks of dataflow/rules-tutorial.toml, with its reasons and weights. */
    private static Decision check(Transaction txn, UserState user, boolean anomaly) {
        Decision decision = new Decision();
        if (txn.amount() > HIGH_AMOUNT) {
            decision.add("High amount", 0.05);
        }
        if (user.movedWithinHour(txn)) {
            decision.add("Location change from " + user.location() + " to " + txn.location(), 0.3);
        }
        if (FLAGGED.contains(txn.merchant().strip())) {
            decision.add("Merchant " + txn.merchant() + " flagged", 0.5);
        }
        if (anomaly) {
            decision.add("ML anomaly detection", 0.0);
        }
        return decision;
    }

    /** The id of a transaction that carries none: where it stands in the source. */
    private String place() {
        RecordMetadata metadata = context.recordMetadata().orElseThrow();
        return metadata.topic() + "-" + metadata.partition() + "-" + metadata.offset();
    }
}
