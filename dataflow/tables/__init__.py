"""Tables of rows by key that know what changed in them: profiles are kept in them, and the log is written from them."""
