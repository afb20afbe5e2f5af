"""Decides what of a registry's URI may be shown, and whether anything answers there at all.

MLflow's client tries for minutes where nobody listens: a server 8 times, a database 10 times, each wait
twice as long as the last. So one short question goes first.
"""

import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
PROBE_S = 5.0
"""How long the first question may take."""

_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}


class Address:
    """A tracking URI of MLflow: a store of SQL, a server, a folder, or a word such as "databricks"."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._secrets = _secrets(uri)

    @property
    def shown(self) -> str:
        """The URI for people, without its user and password.

        >>> Address("postgresql://ann:pa/ss@db:5432/mlflow?sslpassword=x").shown
        'postgresql://db:5432/mlflow?sslpassword=***'
        """
        return self.hide(self._without_account)

    def hide(self, text: str) -> str:
        """A text of somebody else's, such as an error, without what is secret in the URI."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    @property
    def _without_account(self) -> str:
        account = _account(self.uri)
        return self.uri.replace(f"{account}@", "", 1) if account else self.uri

    @property
    def is_http(self) -> bool:
        """Whether a server of MLflow's is there, which says itself where artifacts go."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def is_database(self) -> bool:
        """Whether a database that has a server is there."""
        return self._scheme in _PORTS

    @property
    def _scheme(self) -> str:
        return self.uri.partition(":")[0].partition("+")[0]

    def why_silent(self, timeout_s: float = PROBE_S) -> str | None:
        """Why nothing can be asked there now; None if something answers, or if only MLflow can tell."""
        if self.is_http:
            return self._ask_server(timeout_s)
        if not self.is_database:
            return None
        try:
            parts = urlsplit(self._without_account)
            host, port = parts.hostname, parts.port or _PORTS[self._scheme]
        except ValueError:  # several hosts: for the driver to sort out
            return None
        if not host:  # a socket of this machine
            return None
        try:
            socket.create_connection((host, port), timeout_s).close()
        except OSError as error:
            return _reason(error, timeout_s)
        return None

    def _ask_server(self, timeout_s: float) -> str | None:
        url = f"{self._without_account.rstrip('/')}/health"
        try:
            with urllib.request.urlopen(url, timeout=timeout_s):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            # Whoever refuses us is there; a proxy says with 502 to 504 that nobody is behind it.
            return f"it answers {error.code} {error.reason}" if error.code >= 500 else None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLError):
                return None  # MLflow has settings of its own for certificates
            return _reason(reason if isinstance(reason, OSError) else error, timeout_s)
        except OSError as error:
            return _reason(error, timeout_s)


def _reason(error: OSError, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return error.strerror or str(error) or type(error).__name__


def _account(uri: str) -> str:
    """What stands between "//" and the last "@" before the query; "" where there is no host, but a path."""
    rest = uri.partition("://")[2].partition("?")[0]
    return "" if rest.startswith("/") else rest.rpartition("@")[0]


def _secrets(uri: str) -> tuple[str, ...]:
    """What must not be seen, longest first: passwords as they stand and as they are meant."""
    account = _account(uri)
    password = account.partition(":")[2]
    found = {account, password, unquote(password)} if password else set()
    for key, value in parse_qsl(uri.partition("?")[2]):
        if "password" in key or "token" in key:
            found |= {value, quote(value, safe="")}
    return tuple(sorted(found - {""}, key=len, reverse=True))
