"""How a request is written for wrk, and how wrk's answer is read."""

from pathlib import Path

import pytest

from benchmarks.wrk import parse_wrk, wrk_script
from interlock.operations.load import Request

LINE = (
    '"requests":4000,"duration_us":2000000,"p50_us":140,"p99_us":900,"max_us":2000,'
    '"bad_status":3,"connect_errors":0,"read_errors":1,"write_errors":0,"timeouts":2'
)


def test_the_line_is_found_among_what_wrk_prints() -> None:
    seen = parse_wrk(f"Running 2s test @ http://127.0.0.1:1/\n  1 threads\nWRK {{{LINE}}}\n")
    assert (seen.per_s, seen.p50_us, seen.p99_us) == (2000, 140, 900)
    assert seen.failures == 6


def test_output_without_the_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_the_script_carries_method_headers_and_the_body_file() -> None:
    request = Request("http://127.0.0.1:1/x", b"\x00", {"content-type": "application/json"}, "PUT")
    script = wrk_script(request, Path("/tmp/some body"))
    assert 'io.open("/tmp/some body", "rb")' in script
    assert 'wrk.method = "PUT"' in script
    assert 'wrk.headers["content-type"] = "application/json"' in script


def test_a_request_is_encoded_with_host_and_length() -> None:
    request = Request("http://127.0.0.1:81/a?b=1", b"xy", {"x-y": "z"})
    assert request.address() == ("127.0.0.1", 81)
    assert request.encode() == (
        b"POST /a?b=1 HTTP/1.1\r\nhost: 127.0.0.1:81\r\nx-y: z\r\ncontent-length: 2\r\n\r\nxy"
    )
