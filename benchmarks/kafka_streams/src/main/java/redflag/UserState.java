package redflag;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** What is remembered of a user: the event times of the last two hours, and the last location. */
final class UserState {
    /** As it stands in RocksDB: the number of times, the times (8 bytes each), and the location in UTF-8. */
    static final Serde<UserState> SERDE =
            Serdes.serdeFrom((topic, state) -> state.toBytes(), (topic, bytes) -> fromBytes(bytes));

    static final long HOUR = 3_600_000_000L; // microseconds, as all times here
    private static final int MOST_TIMES = 1024; // a user with more within two hours counts as having this many
    private static final String UNKNOWN = "unknown";

    private long[] times; // ascending; the last is that of the newest transaction
    private int count;
    private String location; // of the newest transaction whose location is known; "" if there is none

    UserState() {
        this(new long[0], 0, "");
    }

    private UserState(long[] times, int count, String location) {
        this.times = times;
        this.count = count;
        this.location = location;
    }

    String location() {
        return location;
    }

    /** Whether the user was elsewhere, and the newest transaction is at most an hour away in time. */
    boolean movedWithinHour(Transaction txn) {
        return !location.isEmpty()
                && !location.equals(txn.location())
                && !UNKNOWN.equals(txn.location())
                && Math.abs(txn.at() - times[count - 1]) <= HOUR;
    }

    /** Transactions in the hour before {@code at}: at - 1 h < t <= at. */
    int inHour(long at) {
        int found = 0;
        for (int i = count - 1; i >= 0 && times[i] > at - HOUR; i--) {
            if (times[i] <= at) {
                found++;
            }
        }
        return found;
    }

    /** Takes the transaction in. One that is late counts in its hour, if that is not forgotten, and moves nothing. */
    void update(Transaction txn) {
        long at = txn.at();
        boolean late = count > 0 && at < times[count - 1];
        if (late && at <= times[count - 1] - 2 * HOUR) {
            return;
        }
        int forgotten = 0;
        long oldest = (late ? times[count - 1] : at) - 2 * HOUR;
        while (forgotten < count && (times[forgotten] <= oldest || count - forgotten >= MOST_TIMES)) {
            forgotten++;
        }
        int place = count;
        while (place > forgotten && times[place - 1] > at) {
            place--;
        }
        long[] kept = new long[count - forgotten + 1];
        System.arraycopy(times, forgotten, kept, 0, place - forgotten);
        kept[place - forgotten] = at;
        System.arraycopy(times, place, kept, place - forgotten + 1, count - place);
        times = kept;
        count = kept.length;
        if (!late && !UNKNOWN.equals(txn.location())) {
            location = txn.location();
        }
    }

    private byte[] toBytes() {
        byte[] place = location.getBytes(StandardCharsets.UTF_8);
        ByteBuffer bytes = ByteBuffer.allocate(Integer.BYTES + Long.BYTES * count + place.length).putInt(count);
        for (long time : times) {
            bytes.putLong(time);
        }
        return bytes.put(place).array();
    }

    private static UserState fromBytes(byte[] stored) {
        if (stored == null) {
            return null;
        }
        ByteBuffer bytes = ByteBuffer.wrap(stored);
        long[] times = new long[bytes.getInt()];
        for (int i = 0; i < times.length; i++) {
            times[i] = bytes.getLong();
        }
        String location = new String(stored, bytes.position(), bytes.remaining(), StandardCharsets.UTF_8);
        return new UserState(times, times.length, location);
    }

    @Override
    public String toString() {
        return location + Arrays.toString(times);
    }
}
