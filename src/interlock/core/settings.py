"""NodeConfig: how one node runs, validated once and handed to each of its processes."""

from pathlib import Path

import msgspec


class NodeConfig(msgspec.Struct, frozen=True):
    """Settings of a node. Ports follow Triton's habit; 0 lets the system choose.

    `token` is None while the admin port is on loopback only. `allow_repository_control` opens V2 load and
    unload on the data port. `drain_s` bounds how long a leaving process answers what it has.
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


def run_folder(home: Path) -> Path:
    """Where the processes of a node meet: sockets, counter blocks, last letters, node.json."""
    return home / "run"


def encode_args(args: ProcessArgs) -> str:
    """The one argument of a child process."""
    return msgspec.json.encode(args, enc_hook=str).decode()


def decode_args(text: str) -> ProcessArgs:
    """What `encode_args` wrote. Raises: msgspec.ValidationError."""
    return msgspec.json.decode(text, type=ProcessArgs, dec_hook=lambda kind, value: kind(value))
