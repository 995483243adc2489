package redflag;

import com.fasterxml.jackson.core.io.JsonStringEncoder;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/** The verdict on one transaction. */
final class Decision {
    private static final JsonStringEncoder JSON = JsonStringEncoder.getInstance();
    private static final int MILLION = 1_000_000;

    private final List<String> reasons = new ArrayList<>();
    private double doubt = 1.0; // product of 1 - weight over the checks that spoke

    /** A check speaks against the transaction; {@code weight} is what that adds to the score, 0 to 1. */
    void add(String reason, double weight) {
        reasons.add(reason);
        doubt *= 1 - weight;
    }

    boolean fraudulent() {
        return !reasons.isEmpty();
    }

    /**
     * The message with the decision's fields at the end of its object; its own fields keep their bytes.
     *
     * @param risk the model's, 0 to 1. Checks and model are each a reason of their own: noisy-OR
     * @param id the transaction_id to add, null where the message has one
     */
    byte[] appendedTo(byte[] message, double risk, String id) {
        int end = message.length - 1;
        while (message[end] != '}') {
            end--;
        }
        ByteArrayOutputStream out = new ByteArrayOutputStream(end + 160);
        out.write(message, 0, end);
        write(out, fraudulent() ? ",\"fraudulent\":true,\"reason\":[" : ",\"fraudulent\":false,\"reason\":[");
        for (int i = 0; i < reasons.size(); i++) {
            write(out, i == 0 ? "\"" : ",\"");
            out.writeBytes(JSON.quoteAsUTF8(reasons.get(i)));
            write(out, "\"");
        }
        int millionths = (int) ((1 - doubt * (1 - risk)) * MILLION + 0.5);
        String digits = Integer.toString(MILLION + millionths); // 1 and six digits; 2 and six digits for a score of 1
        write(out, "],\"score\":" + (char) (digits.charAt(0) - 1) + "." + digits.substring(1));
        if (id != null) {
            write(out, ",\"transaction_id\":\"" + id + "\"");
        }
        write(out, "}");
        return out.toByteArray();
    }

    private static void write(ByteArrayOutputStream out, String ascii) {
        out.writeBytes(ascii.getBytes(StandardCharsets.US_ASCII));
    }
}
