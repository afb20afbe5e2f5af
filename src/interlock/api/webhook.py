"""Decides whether a webhook is from the MLflow that knows our secret; one that is only wakes who asks MLflow.

MLflow signs as Standard Webhooks do: HMAC-SHA256 over `id.timestamp.body`, in Base64, after the version `v1`
(mlflow/webhooks/delivery.py of 3.17).
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

from interlock.api import schema
from interlock.core.errors import Forbidden
from interlock.operations.access import MIN_TOKEN
from interlock.operations.discovery import read_webhook_secret

PATH = "/api/webhooks/mlflow"
FRESH_S = 300.0
"""How far the time of a webhook may be from ours; MLflow tries one again for up to about two minutes."""


def check_signature(
    secret: str | None, delivery: str, timestamp: str, signature: str, body: bytes, now_s: float
) -> None:
    """Nothing, if whoever sent `body` knows the secret and sent it lately. `now_s`: Unix time.

    Raises: Forbidden.
    """
    if secret is None:
        raise Forbidden("webhooks are off: put a secret into the file webhook-secret in the home folder")
    if len(secret) < MIN_TOKEN:
        raise Forbidden(f"webhooks are off: the secret has {len(secret)} characters, want {MIN_TOKEN}")
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise Forbidden(f"X-MLflow-Timestamp {timestamp[:40]!r}: want Unix seconds")
    # The signature first: who does not know the secret learns nothing of our clock.
    signed = f"{delivery}.{timestamp}.".encode("utf-8", "surrogateescape") + body
    right = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())
    if not hmac.compare_digest(b"v1," + right, signature.encode("utf-8", "surrogateescape")):
        raise Forbidden("X-MLflow-Signature is not that of the secret in this home folder")
    if abs(now_s - int(timestamp)) > FRESH_S:
        raise Forbidden(f"X-MLflow-Timestamp {timestamp} is more than {FRESH_S:g} s from {now_s:.0f}")


def add_webhook(app: FastAPI, home: Path, now_s: Callable[[], float], hint: Callable[[], None]) -> None:
    """The path of MLflow's webhooks. `hint` is called for each that may be believed."""

    @app.post(
        PATH,
        status_code=204,
        responses=schema.fails(413),
        response_description="Heard",
        tags=["releases"],
    )
    async def post_webhook(request: Request) -> Response:
        """Say that something in MLflow has changed: aliases that models follow are looked at now.

        Signed with the secret in the file `webhook-secret` of the home folder, without which it is off.
        """
        given = request.headers
        check_signature(
            read_webhook_secret(home),
            given.get("x-mlflow-delivery-id", ""),
            given.get("x-mlflow-timestamp", ""),
            given.get("x-mlflow-signature", ""),
            await request.body(),
            now_s(),
        )
        hint()
        return Response(status_code=204)
