import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.endpoint.made import ask as chat
from tests.endpoint.made import client, unused_port
from tests.judge.server import Script, Server
from tiebreak.endpoint.shapes import read_chat
from tiebreak.endpoint.wire import retry_after
from tiebreak.records import InputError

KEY = "sk-very-secret-0123456789"


def test_a_reply_has_text_tokens_usage_and_latency():
    with Server(Script(delay=0.01)) as server:
        (reply,) = chat(client(server.url), logprobs=True, top_logprobs=7)
    assert (reply.text, reply.finish) == ("1", "stop")
    assert reply.tokens[0].text == "1"
    assert set(reply.tokens[0].top) == {"1", "2", "The"}
    assert reply.tokens_in > 0
    assert reply.tokens_out == 1
    assert reply.latency >= 0.01
    assert json.loads(server.log[0][0])["top_logprobs"] == 7


def test_without_log_probabilities_there_are_no_tokens():
    with Server() as server:
        assert chat(client(server.url))[0].tokens is None


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_a_passing_fault_is_retried(fault):
    with Server(Script(faults=0.5, fault=fault, reply="1")) as server:
        replies = chat(client(server.url), n=40)
        statuses = [status for _, status in server.log]
    assert all(reply.text == "1" for reply in replies)
    assert statuses.count(200) == 40
    assert statuses.count(fault) > 5


def test_retry_after_is_obeyed():
    with Server(Script(faults=1.0, fault=429, retry_after="0.05")) as server:
        started = time.monotonic()
        chat(client(server.url))
        assert time.monotonic() - started >= 0.05


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert retry_after("3") == 3.0
    when = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after(format_datetime(when, usegmt=True)) <= 100
    assert [retry_after(value) for value in ("", "soon", "-4", "nan", "inf")] == [0.0] * 5


def test_a_wait_beyond_patience_ends_the_call_with_the_servers_words():
    with Server(Script(status=429, message="daily quota used up", retry_after="86400")) as server:
        with pytest.raises(InputError, match=r"daily quota used up.*86400"):
            chat(client(server.url))
        assert len(server.log) == 1


def test_a_lasting_fault_is_an_input_error_after_the_retries():
    with Server(Script(status=500, message="out of memory")) as server:
        with pytest.raises(InputError, match=r"500: out of memory.*run again"):
            chat(client(server.url, retries=3))
        assert len(server.log) == 4


@pytest.mark.parametrize(("status", "said"), [(400, "scripted words"), (401, "key"), (404, "model's name")])
def test_a_refusal_is_told_at_once_in_the_servers_words(status, said):
    with Server(Script(status=status, message="scripted words")) as server:
        with pytest.raises(InputError, match=f"scripted words.*{said}" if status != 400 else said):
            chat(client(server.url))
        assert len(server.log) == 1


def test_a_dead_server_is_one_clear_sentence_at_once():
    url = f"http://127.0.0.1:{unused_port()}/v1"
    with pytest.raises(InputError) as told:
        chat(client(url, backoff=60.0))
    assert url in str(told.value)
    assert "cannot be reached" in str(told.value)
    assert "check that the server runs" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_slow_server_is_a_timeout_with_its_seconds():
    with Server(Script(delay=0.5)) as server, pytest.raises(InputError, match=r"no answer within 0\.05 s"):
        chat(client(server.url, timeout=0.05, retries=1))


def test_what_is_no_chat_completion_is_retried_then_told():
    assert read_chat("<html>", 0.0) is None
    assert read_chat('{"choices": []}', 0.0) is None
    assert read_chat('{"error": {"message": "no"}}', 0.0) is None
    assert read_chat('{"choices": [{"message": {"content": null}}]}', 0.0).text == ""


def test_tokens_that_decode_to_one_text_add_up():
    top = [{"token": "1", "logprob": -1.0}, {"token": "1", "logprob": -1.0}]
    content = [{"token": "1", "logprob": -1.0, "top_logprobs": top}, {"token": "x", "logprob": -2.0}]
    reply = read_chat(json.dumps({"choices": [{"message": {"content": "1x"}, "logprobs": {"content": content}}]}), 0.0)
    assert reply.tokens[0].top["1"] == pytest.approx(-1.0 + 0.6931471805599453)
    assert reply.tokens[1].top == {"x": -2.0}


def test_the_key_goes_into_the_header_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    with Server(Script(status=401, message="wrong key: {authorization}")) as server, caplog.at_level(0):
        endpoint = client(server.url, key_env="MY_KEY")
        with pytest.raises(InputError) as told:
            chat(endpoint)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "MY_KEY" in str(told.value)
    for place in (str(told.value), repr(told.value.__context__), repr(vars(endpoint)), caplog.text):
        assert KEY not in place


def test_no_key_sends_no_header(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with Server() as server:
        chat(client(server.url, key_env="MY_KEY"))
        assert "Authorization" not in server.headers[0]


def test_a_key_that_cannot_stand_in_a_header_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-first\nsk-second")
    with pytest.raises(InputError, match="MY_KEY") as told:
        chat(client("http://localhost:1/v1", key_env="MY_KEY"))
    assert "sk-first" not in str(told.value)


def test_a_password_in_the_address_is_refused_unseen():
    with pytest.raises(InputError, match="key_env") as told:
        client("http://me:hunter2@localhost/v1")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match="http://localhost:8000/v1"):
        client(url)


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
def test_an_address_may_end_where_people_end_it(ending):
    with Server() as server:
        assert chat(client(server.url + ending))[0].text == "1"


def test_calls_in_flight_stay_within_the_bound_and_share_connections():
    with Server(Script(delay=0.01)) as server:
        chat(client(server.url, concurrency=4), n=40)
        assert server.peak == 4


def test_a_closed_endpoint_opens_again_in_another_loop():
    with Server() as server:
        endpoint = client(server.url, concurrency=1)
        assert chat(endpoint, n=3) is not None
        assert chat(endpoint, n=3) is not None
        assert len(server.log) == 6
