"""The judge client against a scripted endpoint: what is retried, what stops it, what it remembers."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from support.scripted_endpoint import KEY_VARIABLE, endpoint

from tinyvlm_cli.config import commands as command_config
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.judge import open_judge, provenance
from tinyvlm_cli.evaluate.judge_cache import Reply, ReplyCache, Request
from tinyvlm_cli.results.folder import Results

QUESTION = Request(messages=(("system", "Grade."), ("user", "one")), temperature=0.2, max_tokens=7)


def ask(text: str) -> Request:
    return Request(messages=(("user", text),), temperature=0.0, max_tokens=3)


def test_sends_the_request_as_it_is(tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5") as judge:
        reply = judge.judge(tmp_path).reply(QUESTION)
    assert (reply.text, reply.served) == ("0.5", "served-name")
    assert judge.asked == [
        {
            "model": "gpt-4-0613",
            "messages": [{"role": "system", "content": "Grade."}, {"role": "user", "content": "one"}],
            "temperature": 0.2,
            "max_tokens": 7,
        }
    ]


def test_no_judge_without_a_model(tmp_path: Path) -> None:
    assert open_judge(command_config.Judge(), Results(tmp_path)) is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_asks_again_after_a_passing_failure(tmp_path: Path, status: int) -> None:
    with endpoint(lambda _: "fine" if len(judge.asked) > 2 else status) as judge:
        assert judge.judge(tmp_path, retries=2).reply(QUESTION).text == "fine"


def test_a_failure_is_pending_and_a_rerun_asks_for_it_alone(tmp_path: Path) -> None:
    with endpoint(lambda text: 500 if text == "b" and len(judge.asked) < 4 else text.upper()) as judge:
        client = judge.judge(tmp_path, concurrency=1)
        assert client.each("abc", lambda text: client.reply(ask(text)).text) == ["A", None, "C"]
        assert "status 500" in client.trouble
        again = judge.judge(tmp_path)
        assert again.each("abc", lambda text: again.reply(ask(text)).text) == ["A", "B", "C"]
    assert judge.prompts == ["a", "b", "c", "b"]


def test_the_same_request_in_two_threads_is_sent_once(tmp_path: Path) -> None:
    with endpoint(lambda _: 0.05) as judge:  # time for the other to come
        client = judge.judge(tmp_path)
        assert client.each("aa", lambda text: client.reply(ask(text)).text) == ["late", "late"]
    assert judge.prompts == ["a"]


def test_parameters_that_a_model_does_not_take_are_left_out_and_said(tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5", refused=("max_tokens", "temperature")) as judge:
        client = judge.judge(tmp_path)
        replies = [client.reply(ask(text)) for text in "ab"]
    last = judge.asked[-1]
    assert len(judge.asked) == 4  # twice refused, then known
    assert "temperature" not in last and "max_tokens" not in last and last["max_completion_tokens"] == 3
    assert provenance(replies)["without"] == ["max_tokens, temperature"]


def test_model_and_every_part_of_a_request_tell_replies_apart(tmp_path: Path) -> None:
    variants = [replace(QUESTION, max_tokens=8), replace(QUESTION, temperature=0.3)]
    variants += [replace(QUESTION, messages=(("user", "Grade."), ("user", "one"))), QUESTION]
    with endpoint(lambda _: "x") as judge:
        for model in ("a/b", "a:b"):  # one file
            client = judge.judge(tmp_path, model=model)
            for request in variants * 2:
                client.reply(request)
    assert len(judge.asked) == 2 * len(variants)


def test_a_repeat_is_another_request(tmp_path: Path) -> None:
    with endpoint(lambda _: str(len(judge.asked))) as judge:
        client = judge.judge(tmp_path)
        assert [client.reply(QUESTION, repeat).text for repeat in ("0", "1", "0")] == ["1", "2", "1"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_place_stops_at_once(tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with endpoint(lambda _: status) as judge:
        client = judge.judge(tmp_path, concurrency=1, retries=5)
        assert client.each(range(50), lambda number: client.reply(ask(str(number)))) == [None] * 50
    assert len(judge.asked) == 1
    assert len([line for line in caplog.records if line.levelno >= logging.WARNING]) == 1


def test_the_key_reaches_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    caplog.set_level(logging.INFO)
    with endpoint(lambda text: 401 if text == "wrong" else "sure") as judge:
        client = judge.judge(tmp_path, concurrency=1)
        assert client.each(["right", "wrong"], lambda text: client.reply(ask(text)))[1] is None
    assert judge.keys == ["Bearer sk-secret"] * 2
    assert "refused" in client.trouble and KEY_VARIABLE in client.trouble
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "sk-secret" not in written + client.trouble + caplog.text


def test_a_dead_endpoint_is_pending(tmp_path: Path) -> None:
    with endpoint(lambda _: "never") as judge:
        pass
    client = judge.judge(tmp_path)
    assert client.each(range(40), lambda number: client.reply(ask(str(number)))) == [None] * 40
    assert "does not answer" in client.trouble


def test_an_endpoint_that_only_fails_is_given_up(tmp_path: Path) -> None:
    with endpoint(lambda _: 500) as judge:
        client = judge.judge(tmp_path, concurrency=1)
        assert client.each(range(40), lambda number: client.reply(ask(str(number)))) == [None] * 40
    assert len(judge.asked) == 3


def test_a_slow_endpoint_is_pending(tmp_path: Path) -> None:
    with endpoint(lambda text: 0.5 if text == "slow" else "quick") as judge:
        client = judge.judge(tmp_path, timeout_s=0.1)
        replies = client.each(["slow", "fast"], lambda text: client.reply(ask(text)).text)
    assert replies == [None, "quick"]


def test_a_refused_request_does_not_stop_the_others(tmp_path: Path) -> None:
    with endpoint(lambda text: 400 if int(text) < 5 else "ok") as judge:
        client = judge.judge(tmp_path, concurrency=1)
        assert client.each(range(6), lambda n: client.reply(ask(str(n))).text) == [None] * 5 + ["ok"]


def test_a_reply_cut_by_a_kill_is_asked_again_and_spoils_nothing(tmp_path: Path) -> None:
    with endpoint(lambda text: text.upper()) as judge:
        client = judge.judge(tmp_path)
        for text in "ab":
            client.reply(ask(text))
        file = tmp_path / "judge" / "gpt-4-0613.jsonl"
        file.write_bytes(file.read_bytes()[:-9])
        again = judge.judge(tmp_path)
        assert [again.reply(ask(text)).text for text in "abc"] == ["A", "B", "C"]
    assert judge.prompts == ["a", "b", "b", "c"]
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["A", "B", "C"]


def test_processes_share_replies_and_the_first_one_counts(tmp_path: Path) -> None:
    mine, other = ReplyCache(tmp_path, "m"), ReplyCache(tmp_path, "m")
    assert mine.get(QUESTION, "") is None
    other.put(QUESTION, "", Reply("first \u2028 line", "m", "2026-01-01T00:00:00Z"))
    assert mine.put(QUESTION, "", Reply("second", "m", "2026-01-02T00:00:00Z")).text == "first \u2028 line"
    assert ReplyCache(tmp_path, "m").get(QUESTION, "") == mine.get(QUESTION, "")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(UserError, match=r"m\.jsonl, byte 0"):
        ReplyCache(tmp_path, "m").get(QUESTION, "")


def test_provenance_names_model_and_dates() -> None:
    replies = [Reply("", "gpt-4", "2026-02"), Reply("", "gpt-4", "2026-01")]
    assert provenance(replies) == {"served": ["gpt-4"], "from": "2026-01", "to": "2026-02"}
