"""Owns control's taking in of feedback: opened if it can be, read every second, forgotten when it is old."""

import asyncio
import logging
import time

from interlock.app import logs
from interlock.core.errors import InterlockError
from interlock.operations.context import Context
from interlock.registry.feedback import KEEP_S, FeedbackStore

TAKE_IN_EVERY_S = 1.0
PRUNE_EVERY_S = 3600.0
log = logging.getLogger("interlock.control")


def open_feedback(context: Context) -> FeedbackStore | None:
    """The feedback of a home; None where its database cannot be used."""
    ledger = context.ledger
    try:
        return FeedbackStore(
            context.home, lambda: max((row.id for row in ledger.releases(limit=1)), default=0)
        )
    except (OSError, InterlockError) as error:
        # It waits in the workers' files until the database is mended; releases do not.
        log.error("feedback cannot be kept, and no metric is judged", extra=logs.fields(error=str(error)))
        return None


async def take_feedback(store: FeedbackStore | None) -> None:
    """Until cancelled."""
    pruned_s = 0.0
    while store is not None:
        try:
            await asyncio.to_thread(store.take_in)
            if time.time() - pruned_s > PRUNE_EVERY_S:
                pruned_s = time.time()
                await asyncio.to_thread(store.prune, int((pruned_s - KEEP_S) * 1000))
        except Exception as error:  # whatever it is, releases go on without
            log.error("feedback was not taken in", extra=logs.fields(error=str(error)))
        await asyncio.sleep(TAKE_IN_EVERY_S)
    await asyncio.Event().wait()
