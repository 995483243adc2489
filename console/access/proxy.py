"""Users that a reverse proxy has let in: it names them in a header, which counts from its own addresses alone."""

import ipaddress
from collections.abc import MutableMapping
from typing import Any

from console.users import User, Users
from dataflow.errors import UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RefusedError(Exception):
    """Whoever asks does not get in; the text says why, and nothing of what was sent."""


class Proxy:
    """Where the proxy is, and how it says who somebody is."""

    def __init__(self, addresses: str, header: str, users: Users):
        """`addresses`: addresses or networks with commas between.

        Raises:
            UserError: one is none.
        """
        self._networks = [_network(each) for each in addresses.split(",")]
        self._header = header.lower().encode()
        self._users = users

    def user(self, scope: MutableMapping[str, Any]) -> User:
        """Who asks, as the proxy says.

        Raises:
            RefusedError: it does not come from the proxy, which names nobody, several, or nobody whom the users file
                knows.
        """
        client = scope.get("client")
        if client is None or not self._is_the_proxy(client[0]):
            msg = "this console is reached through its proxy only"
            raise RefusedError(msg)
        # A proxy that adds its header to one that the browser sent, in place of replacing it, must let nobody in.
        named = [value for name, value in scope["headers"] if name.lower() == self._header]
        if len(named) != 1:
            msg = "the proxy names nobody" if not named else "the proxy names several users"
            raise RefusedError(msg)
        user = self._users.named(named[0].decode("latin-1").strip())
        if user is None:
            msg = "this user is not in the console's users file"
            raise RefusedError(msg)
        return user

    def _is_the_proxy(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._networks)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        msg = f"CONSOLE_PROXY_ADDRESSES: {text!r} is neither an address nor a network ({error})"
        raise UserError(msg) from error
