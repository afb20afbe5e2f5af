"""The Python client: one core that decides what to send, what an answer means and what is sent again, and two
thin shells, one that blocks and one for asyncio."""
