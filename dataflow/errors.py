"""What a user has done wrong, and can mend."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what, where, and what to do; of several mistakes, a line each."""
