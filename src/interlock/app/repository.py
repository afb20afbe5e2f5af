"""Carries V2 load and unload from a worker to control's admin API: the data port decides nothing itself."""

import asyncio
import urllib.parse
from typing import Literal

import msgspec

from interlock.core.errors import InterlockError, InvalidRequest, ModelNotFound, NotReady, ReleaseRefused
from interlock.core.settings import NodeConfig, run_folder

ANSWER_S = 120.0
_ERRORS: dict[int, type[InterlockError]] = {404: ModelNotFound, 409: ReleaseRefused, 400: InvalidRequest}


async def ask_control(config: NodeConfig, action: Literal["load", "unload"], model: str) -> None:
    """Have control load (release the newest) or unload a model, and wait for its word.

    Raises: NotReady when control does not answer; what its answer says otherwise.
    """
    try:
        node = msgspec.json.decode((run_folder(config.home) / "node.json").read_bytes())
        kept = run_folder(config.home) / "token"  # not in the settings, which a command line would show
        token = kept.read_text().strip() if kept.exists() else ""
        reader, writer = await asyncio.open_connection(config.admin_host, int(node["admin_port"]))
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise NotReady(f"control does not answer ({type(error).__name__}); try again") from error
    try:
        path = f"/api/models/{urllib.parse.quote(model, safe='')}/{action}"
        authorization = f"authorization: Bearer {token}\r\n" if token else ""
        writer.write(
            f"POST {path} HTTP/1.0\r\nhost: localhost\r\n{authorization}content-type: application/json\r\n"
            f"content-length: 2\r\n\r\n{{}}".encode()
        )
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(1 << 20), ANSWER_S)
        while chunk := await asyncio.wait_for(reader.read(1 << 16), ANSWER_S):
            answer += chunk
    except (OSError, TimeoutError) as error:
        raise NotReady(f"control did not answer {action} of '{model}': {error}") from error
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 502
    if status >= 300:
        try:
            message = str(msgspec.json.decode(body)["error"]["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            message = f"control answered {status} to {action} of '{model}'"
        raise _ERRORS.get(status, NotReady)(message)
