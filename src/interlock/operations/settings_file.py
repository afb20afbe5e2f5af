"""Reads the app file of a home folder; what it may say is decided in `core/appfile.py`."""

from pathlib import Path

from interlock.core.appfile import AppFile, app_file, parse_app
from interlock.core.errors import ConfigError


def read_app_file(home: Path) -> AppFile:
    """What the app file sets; nothing when there is none.

    Raises: ConfigError, SchemaTooNew.
    """
    path = app_file(home)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return AppFile()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return parse_app(text, str(path))
