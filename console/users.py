"""The users file: a line for each user with name, roles and the hash of the password; and the command that writes it.

python -m console.users users.txt eve --roles look,label
"""

import argparse
import getpass
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from dataflow.errors import UserError
from dataflow.process import event_log, lifecycle
from dataflow.process.whole_files import put_in_place

ROLES: Final = ("look", "label", "rules", "cards")
"""What a user may do: see the console; label and work cases; change rules; see whole card numbers in a case."""
WITHOUT_PASSWORDS: Final = frozenset(("look", "label", "rules"))
"""What everybody may where there are no users: who sees the numbers of cards must be known by name."""
NO_PASSWORD: Final = "-"  # noqa: S105
"""In place of a hash, of a user whom only a proxy lets in."""
SHORTEST: Final = 12
"""Characters of a password, at least."""
_NAME = re.compile(r"[\w.@-]{1,64}")

_hasher = PasswordHasher()
_log = logging.getLogger("redflag.console")


class User(msgspec.Struct, frozen=True):
    """A user of the console."""

    name: str
    roles: frozenset[str]
    password_hash: str


class Users:
    """All users, as the file has them at the start."""

    def __init__(self, users: Sequence[User]):
        self._by_name = {user.name: user for user in users}
        # As costly to check as a user's: how long an answer takes does not tell whether a name is known.
        self._nobody = _hasher.hash(os.urandom(16))

    @classmethod
    def load(cls, path: Path) -> "Users":
        """Reads the file.

        Raises:
            UserError: it cannot be read, others may read it, or a line is wrong.
        """
        try:
            lines = path.read_text().splitlines()
            readable = path.stat().st_mode & 0o077
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            msg = f"CONSOLE_USERS_FILE={path} cannot be read ({reason}); make it with `python -m console.users`"
            raise UserError(msg) from error
        if readable:
            msg = f"CONSOLE_USERS_FILE={path} holds hashes of passwords, and others may read it: chmod 600 {path}"
            raise UserError(msg)
        users = [
            _user(line, f"CONSOLE_USERS_FILE={path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        ]
        if not users:
            msg = f"CONSOLE_USERS_FILE={path} names no user: add one with `python -m console.users`"
            raise UserError(msg)
        return cls(users)

    def analysts(self) -> frozenset[str]:
        """Who may work cases."""
        return frozenset(user.name for user in self._by_name.values() if "label" in user.roles)

    def named(self, name: str) -> User | None:
        """The user of a name, whom somebody else has let in."""
        return self._by_name.get(name)

    def check(self, name: str, password: str) -> User | None:
        """The user, if that is the password; takes 50 ms and 64 MiB, whoever it is."""
        user = self._by_name.get(name)
        try:
            known = user is not None and user.password_hash != NO_PASSWORD
            _hasher.verify(user.password_hash if user and known else self._nobody, password)
        except (VerificationError, InvalidHashError):
            return None
        return user if known else None


def _user(line: str, where: str) -> User:
    parts = line.split()
    hashed = len(parts) == 3 and (parts[2].startswith("$argon2id$") or parts[2] == NO_PASSWORD)
    if not hashed or not _NAME.fullmatch(parts[0]):
        msg = f"{where}: it takes name, roles and argon2id hash; write it with `python -m console.users`"
        raise UserError(msg)
    return User(parts[0], roles_of(parts[1], where), parts[2])


def roles_of(text: str, where: str) -> frozenset[str]:
    """Roles from a text with commas.

    Raises:
        UserError: one is unknown.
    """
    roles = frozenset(text.split(","))
    if unknown := sorted(roles - set(ROLES)):
        msg = f"{where}: there is no role {unknown[0]!r}; there are {', '.join(ROLES)}"
        raise UserError(msg)
    return roles | {"look"}


def write(path: Path, name: str, roles: frozenset[str], password: str | None) -> None:
    """Adds a user to the file, or replaces the one of that name; without a password only a proxy lets them in.

    Raises:
        UserError: the name or the password cannot be one, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        msg = f"{name!r} cannot be a name: it takes letters, digits, '.', '_', '@', '-', at most 64"
        raise UserError(msg)
    if password is not None and len(password) < SHORTEST:
        msg = f"the password is too short: it takes at least {SHORTEST} characters"
        raise UserError(msg)
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise UserError(msg) from error
    kept = [line for line in lines if line.split()[:1] != [name]]
    hashed = NO_PASSWORD if password is None else _hasher.hash(password)
    written = f"{name} {','.join(role for role in ROLES if role in roles)} {hashed}"
    put_in_place({path: ("\n".join([*kept, written]) + "\n").encode()}, mode=0o600)


def _asked_password() -> str:
    """What is typed, twice, or the first line of what is piped in."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        msg = "the two passwords differ: nothing was written"
        raise UserError(msg)
    return password


def main() -> None:
    """Asks for a password, and adds the user; exits with 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m console.users", description="Adds a user of the console.")
    parser.add_argument("file", type=Path, help="the users file, see CONSOLE_USERS_FILE")
    parser.add_argument("name")
    parser.add_argument("--roles", default="look,label", help=f"with commas between: {', '.join(ROLES)}")
    parser.add_argument("--no-password", action="store_true", help="only the proxy of CONSOLE_PROXY_ADDRESSES lets in")
    arguments = parser.parse_args()
    event_log.set_up()
    try:
        roles = roles_of(arguments.roles, "--roles")
        write(arguments.file, arguments.name, roles, None if arguments.no_password else _asked_password())
    except UserError as error:
        lifecycle.complain(error)
        sys.exit(2)
    print(f"{arguments.name} is in {arguments.file}; a running console takes it up when it is started anew")


if __name__ == "__main__":
    main()
