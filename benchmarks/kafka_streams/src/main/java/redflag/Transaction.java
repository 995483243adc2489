package redflag;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.time.DateTimeException;
import java.time.LocalDateTime;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.time.temporal.ChronoField;
import java.time.temporal.TemporalAccessor;

/**
 * What the checks read of a valid transaction.
 *
 * @param hasId whether the message carries a transaction_id
 * @param at event time as it counts, microseconds since 1970 UTC
 */
record Transaction(String user, double amount, String location, String merchant, boolean hasId, long at) {
    private static final JsonFactory JSON = new JsonFactory();
    private static final int LONGEST_TEXT = 256;
    private static final long SECOND = 1_000_000;
    private static final long MOST_AHEAD = 24 * 3600 * SECOND;
    private static final long MOST_LEAD = 300 * SECOND;

    /** A message that is no transaction; its text says why. */
    static final class InvalidException extends Exception {
        InvalidException(String message) {
            super(message, null, false, false); // without a stack trace: a bad message is nothing unusual
        }
    }

    /**
     * Parses one message.
     *
     * @param recordTime the record's own Kafka timestamp, milliseconds since 1970. An event time more than a day ahead
     *     of it is refused; one that leads it by more than five minutes counts at the record's.
     */
    static Transaction parse(byte[] message, long recordTime) throws InvalidException {
        if (message == null) {
            throw new InvalidException("no value");
        }
        String user = null, location = null, device = null, merchant = null, type = null, timestamp = null, id = null;
        double amount = Double.NaN;
        boolean latitude = false, longitude = false;
        try (JsonParser parser = JSON.createParser(message)) {
            require(parser.nextToken() == JsonToken.START_OBJECT, "no object");
            for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                JsonToken token = parser.nextToken();
                boolean isNull = token == JsonToken.VALUE_NULL;
                switch (name) {
                    case "user" -> user = text(parser, name);
                    case "amount" -> amount = number(parser, name, 0, Double.MAX_VALUE);
                    case "location" -> location = text(parser, name);
                    case "device" -> device = text(parser, name);
                    case "merchant" -> merchant = text(parser, name);
                    case "txn_type" -> type = text(parser, name);
                    case "timestamp" -> {
                        require(token == JsonToken.VALUE_STRING, name);
                        timestamp = parser.getText();
                    }
                    case "transaction_id" -> id = isNull ? null : text(parser, name);
                    case "latitude" -> latitude = !isNull && !Double.isNaN(number(parser, name, -90, 90));
                    case "longitude" -> longitude = !isNull && !Double.isNaN(number(parser, name, -180, 180));
                    case "category", "ip" -> {
                        if (!isNull) {
                            text(parser, name);
                        }
                    }
                    default -> parser.skipChildren();
                }
            }
            require(parser.currentToken() == JsonToken.END_OBJECT && parser.nextToken() == null, "more than an object");
        } catch (IOException error) {
            throw new InvalidException("no JSON");
        }
        boolean complete = user != null && location != null && device != null && merchant != null && type != null;
        require(complete && timestamp != null && !Double.isNaN(amount), "a field is missing");
        require(latitude == longitude, "half a coordinate");
        long at = eventTime(timestamp);
        long recordAt = recordTime * 1000;
        if (recordTime > 0 && at > recordAt + MOST_LEAD) {
            require(at <= recordAt + MOST_AHEAD, "more than a day ahead of the record's own time");
            at = recordAt;
        }
        return new Transaction(user, amount, location, merchant, id != null, at);
    }

    private static String text(JsonParser parser, String name) throws IOException, InvalidException {
        require(parser.currentToken() == JsonToken.VALUE_STRING, name);
        String text = parser.getText();
        int length = text.length();
        require(length > 0 && (length <= LONGEST_TEXT || text.codePointCount(0, length) <= LONGEST_TEXT), name);
        return text;
    }

    private static double number(JsonParser parser, String name, double least, double most)
            throws IOException, InvalidException {
        require(parser.currentToken().isNumeric(), name);
        double number = parser.getDoubleValue();
        require(number >= least && number <= most, name);
        return number;
    }

    /** Microseconds since 1970 UTC of an ISO 8601 time; without an offset it is taken as UTC. */
    private static long eventTime(String text) throws InvalidException {
        try {
            TemporalAccessor found =
                    DateTimeFormatter.ISO_DATE_TIME.parseBest(text, OffsetDateTime::from, LocalDateTime::from);
            long second = found instanceof LocalDateTime local
                    ? local.toEpochSecond(ZoneOffset.UTC)
                    : ((OffsetDateTime) found).toEpochSecond();
            return second * SECOND + found.get(ChronoField.MICRO_OF_SECOND);
        } catch (DateTimeException error) {
            throw new InvalidException("no ISO 8601 time");
        }
    }

    private static void require(boolean holds, String otherwise) throws InvalidException {
        if (!holds) {
            throw new InvalidException(otherwise);
        }
    }
}
