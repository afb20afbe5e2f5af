"""What a client does step by step, with a clock that tests turn and answers that they make; no network."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from interlock.client.message import Reply
from interlock.client.retry import Failure
from interlock.client.session import Session, told_ms
from interlock.client.steps import Ask, Lost, Send, Steps, T, Wait, address_of
from interlock.core import errors
from interlock.core.errors import ConfigError, DeadlineInvalid, InvalidRequest, NodeUnreachable

URL = "http://node:8000"
X = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
Came = Reply | Lost


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def reply(status: int, document: Any, **headers: str) -> Reply:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    made = Reply(status, lines, 1 << 20)
    made.take(json.dumps(document).encode())
    return made


def metadata(x: dict[str, Any] = X, **parameters: Any) -> Reply:
    return reply(200, {"name": "m", "inputs": [x], "outputs": [], "parameters": parameters})


def answer(version: str = "1") -> Reply:
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [7.0]}
    return reply(200, {"model_name": "m", "model_version": version, "outputs": [output]})


def refused(retry_after: str = "1") -> Reply:
    return reply(503, {"error": "full"}, retry_after=retry_after, interlock_error="Overloaded")


def gone(failed: Failure = Failure.MAYBE) -> Lost:
    return Lost(NodeUnreachable("the connection broke"), failed)


class Rig:
    def __init__(self, **options: Any) -> None:
        self.time = Time()
        self.session = Session(
            URL,
            **{"token": None, "timeout_s": 10.0, "retries": 3, **options},
            clock=self.time,
            chance=lambda: 0.5,
        )
        self.sent: list[Send] = []
        self.waited_s: list[float] = []

    def run(self, steps: Steps[T], *came: Came) -> T:
        """Answer each `Send` with the next of `came`, a millisecond later."""
        left: Iterator[Came] = iter(came)
        step: Send | Wait | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Send):
                    self.sent.append(step)
                    self.time.now_s += 0.001
                    step = steps.send(next(left))
                else:
                    self.waited_s.append(step.until_s - self.time.now_s)
                    self.time.now_s = step.until_s
                    step = steps.send(None)
        except StopIteration as done:
            result: T = done.value
        assert next(left, None) is None, "not all of the answers were asked for"
        return result

    def ask(self, *came: Came, **options: Any) -> Any:
        return self.run(self.session.predict(Ask("m", [[1, 2]], **options)), *came)

    @property
    def paths(self) -> list[str]:
        return [send.path for send in self.sent]


def test_a_model_is_looked_up_once() -> None:
    rig = Rig()
    assert rig.ask(metadata(), answer()).array.tolist() == [7.0]
    rig.ask(answer())
    assert rig.paths == ["/v2/models/m", "/v2/models/m/infer", "/v2/models/m/infer"]


def test_a_canary_costs_one_look_and_not_one_a_call() -> None:
    rig = Rig()
    rig.ask(metadata(), answer("1"))
    rig.ask(answer("2"))  # new: the model is looked up at the next call
    rig.ask(metadata(), answer("2"))
    for version in ("1", "2", "1", "2", "1"):
        rig.ask(answer(version))
    assert rig.paths.count("/v2/models/m") == 2


def test_after_400_a_model_that_has_changed_is_asked_again_as_it_is_now() -> None:
    rig = Rig()
    rig.ask(metadata(), answer())
    fp64 = {**X, "datatype": "FP64"}
    said = reply(400, {"error": "want FP64"}, interlock_error="DatatypeMismatch")
    rig.ask(said, metadata(fp64), answer("2"))
    assert b'"FP64"' in bytes(rig.sent[-1].parts[0])


def test_after_400_a_model_that_is_the_same_is_not_asked_twice() -> None:
    rig = Rig()
    rig.ask(metadata(), answer())
    said = reply(400, {"error": "no"}, interlock_error="ShapeMismatch")
    with pytest.raises(errors.ShapeMismatch, match="no"):
        rig.ask(said, metadata())
    with pytest.raises(errors.ShapeMismatch, match="no"):  # just looked up
        Rig().ask(metadata(), said)


def test_data_that_fits_the_model_only_now_is_sent() -> None:
    rig = Rig()
    rig.ask(metadata(), answer())
    renamed = metadata({**X, "name": "z"})
    rig.run(rig.session.predict(Ask("m", {"z": [[1, 2]]})), renamed, answer("2"))
    with pytest.raises(errors.InputMismatch):
        rig.run(rig.session.predict(Ask("m", {"x": [[1, 2]]})), metadata({**X, "name": "z"}))


def test_a_refusal_is_asked_again_after_what_it_says() -> None:
    rig = Rig()
    rig.ask(metadata(), refused("2"), refused("1"), answer())
    assert rig.waited_s == pytest.approx([2.0375, 1.075])


def test_a_refusal_whose_wait_passes_the_deadline_is_raised_at_once() -> None:
    rig = Rig()
    with pytest.raises(errors.Overloaded, match="full") as caught:
        rig.ask(metadata(), refused("10"))
    assert (rig.waited_s, caught.value.retry_after_s) == ([], 10.0)


@pytest.mark.parametrize(
    ("free", "idempotent", "is_repeated"),
    [
        (True, None, True),
        (False, None, False),
        (None, None, False),
        (False, True, True),
        (True, False, False),
    ],
)
def test_what_may_have_run_is_repeated_only_where_it_may(
    free: bool | None, idempotent: bool | None, is_repeated: bool
) -> None:
    rig = Rig()
    first = metadata() if free is None else metadata(side_effect_free=free)
    if is_repeated:
        rig.ask(first, gone(), answer(), idempotent=idempotent)
        return
    with pytest.raises(NodeUnreachable, match="broke"):
        rig.ask(first, gone(), idempotent=idempotent)


def test_what_cannot_have_run_is_repeated_in_any_case() -> None:
    rig = Rig()
    rig.ask(metadata(), gone(Failure.UNSENT), answer(), idempotent=False)
    with pytest.raises(NodeUnreachable):
        rig.ask(*[gone(Failure.UNSENT)] * 4, idempotent=False)


def test_no_retries_means_none() -> None:
    with pytest.raises(NodeUnreachable):
        Rig(retries=0).ask(gone(Failure.UNSENT))


def test_all_calls_share_one_budget() -> None:
    rig = Rig()
    rig.ask(metadata(), answer())
    sent = 0
    for _ in range(50):
        rig.time.now_s -= sum(rig.waited_s)  # at one time
        rig.waited_s.clear()
        before = len(rig.sent)
        steps = rig.session.predict(Ask("m", [[1, 2]]))
        came: Any = None
        try:
            while True:
                step = steps.send(came)
                if isinstance(step, Send):
                    sent += 1
                    came = gone(Failure.UNSENT)
                else:
                    came = None
        except NodeUnreachable:
            assert len(rig.sent) == before
    assert 50 + 10 <= sent <= 50 + 10 + 5 + 1


def test_one_deadline_for_all_of_a_call() -> None:
    rig = Rig()
    rig.ask(metadata(), refused("2"), answer(), timeout_s=5.0)
    assert {send.deadline_s for send in rig.sent} == {105.0}
    told = [float(dict(send.headers)[b"x-request-timeout-ms"]) for send in rig.sent]
    assert told == [4900.0, 4900.0, 2900.0]
    with pytest.raises(errors.DeadlineExceeded, match="no time is left"):
        steps = rig.session.predict(Ask("m", [[1, 2]], timeout_s=0.5))
        assert isinstance(next(steps), Send)
        rig.time.now_s += 1.0
        steps.send(reply(400, {"error": "late"}))


@pytest.mark.parametrize("left_s", [1e-6, 0.0004, 0.01, 0.0999, 1.0, 9.9999, 10.0, 12345.0])
def test_the_server_is_told_a_little_less_than_there_is(left_s: float) -> None:
    told_s = float(told_ms(left_s)) / 1000
    assert 0.85 * left_s <= told_s < left_s
    assert b"e" not in told_ms(left_s)


def test_labels_go_as_headers_and_the_id_in_the_message() -> None:
    rig = Rig(token="s3cret")
    ask = Ask("m/ä", [[1, 2]], 3, ["y"], None, "zoë", "t", "s", "mine", 0)
    rig.run(rig.session.predict(ask), metadata(), answer("3"))
    send = rig.sent[-1]
    headers = dict(send.headers)
    assert send.path == "/v2/models/m%2F%C3%A4/versions/3/infer"
    assert headers[b"x-interlock-unit"] == "zoë".encode()
    assert headers[b"x-interlock-tenant"] == b"t" and headers[b"x-interlock-segment"] == b"s"
    assert headers[b"x-interlock-priority"] == b"0" and headers[b"authorization"] == b"Bearer s3cret"
    assert headers[b"host"] == b"node:8000"
    assert json.loads(bytes(send.parts[0]))["id"] == "mine"
    for bad in ("a\r\nb: c", "", " a", "a\0"):
        with pytest.raises(InvalidRequest, match="unit is"):
            rig.ask(unit=bad)


def test_feedback_goes_in_messages_that_the_server_takes() -> None:
    rig = Rig()
    items = [(f"id-{at}", "sold", 1.0) for at in range(2500)]
    taken = [reply(200, {"accepted": count}) for count in (1000, 1000, 500)]
    assert rig.run(rig.session.feedback(iter(items), None), *taken) == 2500
    bodies = [json.loads(bytes(send.parts[0])) for send in rig.sent]
    assert [len(body) for body in bodies] == [1000, 1000, 500]
    assert bodies[2][-1] == {"id": "id-2499", "name": "sold", "value": 1.0}
    long = [("x" * 100_000, "sold", 1.0)] * 5
    rig.run(rig.session.feedback(long, None), *[reply(200, {"accepted": n}) for n in (2, 2, 1)])
    assert max(len(send.parts[0]) for send in rig.sent) <= 256 * 1024
    assert rig.run(rig.session.feedback([], None)) == 0


def test_feedback_is_repeated_for_the_server_keeps_the_first() -> None:
    rig = Rig()
    assert rig.run(rig.session.feedback([("1", "a", 1)], None), gone(), reply(200, {"accepted": 1})) == 1


def test_ready_or_not() -> None:
    rig = Rig()
    for came, wanted in (
        (reply(200, {}), True),
        (reply(503, {}), False),
        (reply(404, {}), False),
        (gone(), False),
    ):
        assert rig.run(rig.session.is_ready("m", None, None), came) is wanted
    with pytest.raises(errors.Forbidden):
        rig.run(rig.session.is_ready(None, None, None), reply(403, {}))


def test_what_is_no_answer_of_v2_is_called_so() -> None:
    for came in (reply(200, []), reply(200, {"name": 7})):
        with pytest.raises(NodeUnreachable, match="none of V2"):
            Rig().ask(came)


@pytest.mark.parametrize(
    "url", ["node:8000", "ftp://node", "http://", "http://node:port", "http://node/?a=b", "", "http://[::1"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        address_of(url)


def test_a_url_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as caught:
        address_of("http://me:s3cret@node:8000")
    assert "s3cret" not in caught.value.message


def test_urls_with_a_prefix_and_of_ipv6() -> None:
    assert address_of("https://node/models/").prefix == "/models"
    assert address_of("http://[::1]:8000").authority == b"[::1]:8000"
    assert address_of("https://node").authority == b"node"


@pytest.mark.parametrize("token", ["", "a b", "a\n", "ä"])
def test_a_token_that_no_header_can_have_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        Rig(token=token)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_time_out_that_is_none(timeout_s: float) -> None:
    with pytest.raises(DeadlineInvalid):
        Rig(timeout_s=timeout_s)
    with pytest.raises(DeadlineInvalid):
        Rig().ask(timeout_s=timeout_s)
