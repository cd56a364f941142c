"""Sign a seal with an Ed25519 key, and verify who signed it.

    ssh-keygen -t ed25519 -f KEY  ->  ppma audit --sign KEY  ->  the seal  ->  ppma train --privacy strict --trust KEY.pub

Keys are files of OpenSSH (RFC 8709, RFC 8032). What is signed is a line that names this use, and the text of the seal.
"""

import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppma.config.errors import InputError, reading, require

_USE = b"ppma-audit-seal-1\n"
Signer = Callable[[str], tuple[str, str]]
"""Text of a seal  ->  the public key in OpenSSH's form, the signature in hexadecimal."""


def _package() -> tuple[Any, Any, Any]:
    try:
        import bcrypt  # noqa: F401  # cryptography needs it for keys with a passphrase, and reports it late
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(f"signatures need {error.name}: pip install 'cryptography[ssh]'") from None
    return serialization, ed25519, exceptions


def signer(key: Path) -> Signer:
    """Read a private key, once, asking for its passphrase if it has one.

    Raises:
        InputError: It is no Ed25519 key of OpenSSH, or its passphrase is wrong or cannot be asked for.
    """
    serialization, ed25519, _ = _package()
    with reading(key, "an Ed25519 key; `ssh-keygen -t ed25519 -f FILE` makes one"):
        data = key.read_bytes()
        try:
            private = serialization.load_ssh_private_key(data, None)
        except TypeError:  # it has a passphrase
            require(sys.stdin.isatty(), "it has a passphrase, which can only be typed at a terminal")
            passphrase = getpass.getpass(f"passphrase of {key}: ").encode()
            try:
                private = serialization.load_ssh_private_key(data, passphrase)
            except ValueError:
                raise InputError(f"{key}: the passphrase is wrong") from None
        require(isinstance(private, ed25519.Ed25519PrivateKey), "it is not an Ed25519 key")
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public = private.public_key().public_bytes(*form).decode()
    return lambda text: (public, private.sign(_USE + text.encode()).hex())


def check(file: Path, text: str, key: str, signature: str, trusted: Path) -> None:
    """Check that a seal was signed with a trusted key.

    Args:
        file: The seal, for messages.
        text: What was signed.
        key: The public key that it names; empty without a signature.
        signature: In hexadecimal.
        trusted: Public keys, one a line, as in the .pub files of ssh-keygen.

    Raises:
        InputError: It is not signed, not with one of these keys, or changed since.
    """
    serialization, ed25519, exceptions = _package()
    with reading(trusted, "public keys, one a line; `ssh-keygen` writes one into FILE.pub"):
        lines = [line.split() for line in trusted.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {" ".join(line[:2]): serialization.load_ssh_public_key(" ".join(line[:2]).encode()) for line in lines}
        require(bool(known), "it holds no key")
        require(all(isinstance(one, ed25519.Ed25519PublicKey) for one in known.values()), "not all are Ed25519 keys")
    if not key:
        raise InputError(f"{file} is not signed; run `ppma audit --sign KEY`, or leave out --trust")
    if key not in known:
        raise InputError(f"{file} is signed with {key}, which is not in {trusted}")
    try:
        known[key].verify(bytes.fromhex(signature), _USE + text.encode())
    except (exceptions.InvalidSignature, ValueError):
        raise InputError(f"{file}: the signature is not of this seal; run `ppma audit --sign KEY` again") from None
