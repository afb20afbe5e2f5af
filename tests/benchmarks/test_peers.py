"""Each peer can be named in a record: title, configuration, and what is pinned in its environment."""

import pytest

from benchmarks import envs, peers


@pytest.mark.parametrize("name", peers.NAMES)
def test_every_peer_says_what_it_is_and_what_it_runs(name: str) -> None:
    peer = peers.peer(name)
    assert peer.TITLE and peer.CONFIGURATION
    versions = envs.versions(name)
    assert versions or name == "fastapi_async"
    assert all(version[0].isdigit() for version in versions.values())
