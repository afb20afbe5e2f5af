"""Decides from a node's settings who may reach its admin API, before anything listens."""

from ipaddress import ip_address

from interlock.core.errors import ConfigError

MIN_TOKEN = 16
"""The fewest characters of a token; 16 random ones of ASCII take longer to guess than the node will live."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without port) can only be this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0"), is_loopback("localhost.evil")
    (True, True, False, False)
    """
    bare = host.removeprefix("[").removesuffix("]")
    if bare.lower() == "localhost":
        return True
    try:
        return ip_address(bare).is_loopback
    except ValueError:
        return False


def check_access(admin_host: str, token: str | None) -> None:
    """Nothing, if the admin API may listen at `admin_host` with this token (None: without one).

    Raises: ConfigError beyond loopback without a token, or for a token that could be guessed.
    """
    if token is None and not is_loopback(admin_host):
        raise ConfigError(
            f"the admin API on {admin_host!r} could be reached from other machines and wants a token: set "
            "INTERLOCK_TOKEN or --token-file, or keep it on 127.0.0.1"
        )
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"the token has {len(token)} characters: want at least {MIN_TOKEN}, ASCII without control "
            "characters, such as the output of: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
