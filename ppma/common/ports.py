"""Choose the port at which the ranks of a run meet on one machine."""

import contextlib
import secrets
import socket

FIRST_PORT, PORTS = 20_000, 12_000
"""Below the ports that Linux gives to outgoing connections and to whoever asks for any: it gives none of these away."""


def free_port() -> int:
    """Return a random TCP port of this machine on which no process listens."""
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port := FIRST_PORT + secrets.randbelow(PORTS)))
            return port
