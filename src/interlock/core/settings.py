"""NodeConfig: how one node runs, validated once and handed to each of its processes."""

from pathlib import Path

import msgspec

from interlock.core.errors import ConfigError


class NodeConfig(msgspec.Struct, frozen=True):
    """Settings of a node. Ports follow Triton's habit; 0 lets the system choose.

    `token` is None while the admin port is on loopback only. `allow_repository_control` opens V2 load and
    unload on the data port. `drain_s` bounds how long a leaving process answers what it has. Every
    `access_log_every`th request leaves a line in the log of its worker (0: none does), at most 20 a second;
    so do those answered with 500 and more.
    """

    home: Path
    node: str = "local"
    host: str = "127.0.0.1"
    http_port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8002
    workers: int = 1
    token: str | None = None
    server_name: str = "interlock"
    allow_repository_control: bool = False
    max_body_bytes: int = 64 * 1024 * 1024
    max_json_bytes: int = 16 * 1024 * 1024
    executor_memory_bytes: int = 4 * 1024**3
    drain_s: float = 10.0
    access_log_every: int = 100
    log_level: str = "info"


class ProcessArgs(msgspec.Struct, frozen=True):
    """What the supervisor tells a child on its command line, as one JSON argument.

    `lifeline_fd` reads end-of-file when the supervisor is gone: the child then drains and exits. `listen_fd`
    is the socket that it serves (worker: data port; control: admin port; -1: none). `version_key` names the
    version that an executor runs ("" for others); its description is in the supervisor's Desired.
    """

    config: NodeConfig
    process: str
    incarnation: int
    lifeline_fd: int
    listen_fd: int = -1
    version_key: str = ""


LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_WORKERS = 256


def check_config(config: NodeConfig) -> NodeConfig:
    """The settings themselves, if a node can run with them.

    Raises: ConfigError with the offending value and what it may be.
    """
    for key in ("http_port", "admin_port"):
        port = getattr(config, key)
        if not 0 <= port <= 65535:
            raise ConfigError(f"{key} = {port}: want 0 (any free port) to 65535")
    if config.http_port == config.admin_port != 0 and config.host == config.admin_host:
        raise ConfigError(f"http_port and admin_port are both {config.http_port}: want two ports")
    if not 1 <= config.workers <= MAX_WORKERS:
        raise ConfigError(f"workers = {config.workers}: want 1 to {MAX_WORKERS}, or auto")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level = {config.log_level!r}: want one of {', '.join(LOG_LEVELS)}")
    if not 0 <= config.drain_s <= 3600:
        raise ConfigError(f"drain_s = {config.drain_s}: want 0 to 3600 seconds")
    for key in ("max_body_bytes", "max_json_bytes", "executor_memory_bytes", "access_log_every"):
        if getattr(config, key) < (0 if key == "access_log_every" else 1):
            raise ConfigError(f"{key} = {getattr(config, key)}: want a positive number")
    return config


def run_folder(home: Path) -> Path:
    """Where the processes of a node meet: sockets, counter blocks, last letters, node.json."""
    return home / "run"


def encode_args(args: ProcessArgs) -> str:
    """The one argument of a child process."""
    return msgspec.json.encode(args, enc_hook=str).decode()


def decode_args(text: str) -> ProcessArgs:
    """What `encode_args` wrote. Raises: msgspec.ValidationError."""
    return msgspec.json.decode(text, type=ProcessArgs, dec_hook=lambda kind, value: kind(value))
