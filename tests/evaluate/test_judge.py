"""The judge against a scripted endpoint: what it sends, retries and stores, and when it stops."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.from_conf import answers, from_conf
from support.scripted_endpoint import KEY_VARIABLE, SETTINGS, SILENCE, endpoint

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.judge import provenance, with_judge
from tinyvlm_cli.evaluate.replies import Reply, ReplyCache, Request
from tinyvlm_cli.results.folder import Results

QUESTION = Request(messages=(("system", "Grade."), ("user", "one")), temperature=0.2, max_tokens=7)
REPLY = Reply("0.5", "gpt-4", "2026-01-01T00:00:00Z")


def ask(text: str) -> Request:
    return Request(messages=(("user", text),), temperature=0.0, max_tokens=3)


def unreachable() -> Reply:
    raise AssertionError("the request was sent")


def test_a_request_is_sent_unchanged(tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5") as server:
        reply = server.judge(tmp_path).reply(QUESTION)
    assert (reply.text, reply.served) == ("0.5", "served-name")
    assert server.received == [
        {
            "model": "gpt-4-0613",
            "messages": [{"role": "system", "content": "Grade."}, {"role": "user", "content": "one"}],
            "temperature": 0.2,
            "max_tokens": 7,
        }
    ]


@pytest.mark.parametrize("name", ["mmvet", "llavaw"])
def test_an_answer_is_graded_at_least_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}\.runs: found 0"):
        from_conf(name, tmp_path, runs=0)


def test_only_a_judged_benchmark_gets_the_judge_and_only_if_a_model_is_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mmvet, pope, results = from_conf("mmvet", tmp_path), from_conf("pope", tmp_path), Results(tmp_path)
    assert with_judge(pope, SETTINGS, results) is pope
    assert with_judge(mmvet, replace(SETTINGS, model=None), results) is mmvet
    assert not caplog.records
    assert with_judge(mmvet, SETTINGS, results).judge.model == "gpt-4-0613"  # type: ignore[attr-defined]
    assert KEY_VARIABLE in caplog.text  # not set


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_failure_is_retried(tmp_path: Path, status: int) -> None:
    with endpoint(lambda _: "fine" if len(server.received) > 2 else status) as server:
        assert server.judge(tmp_path, retries=2).reply(QUESTION).text == "fine"


def test_a_failure_is_pending_and_a_rerun_repeats_only_that_request(tmp_path: Path) -> None:
    with endpoint(lambda text: 500 if text == "b" and len(server.received) < 4 else text.upper()) as server:
        judge = server.judge(tmp_path, concurrency=1)
        assert judge.grade_all("abc", lambda text: judge.reply(ask(text)).text) == ["A", None, "C"]
        assert "status 500" in judge.failure_reason
        rerun = server.judge(tmp_path)
        assert rerun.grade_all("abc", lambda text: rerun.reply(ask(text)).text) == ["A", "B", "C"]
    assert server.prompts == ["a", "b", "c", "b"]


def test_the_same_request_in_two_threads_is_sent_once(tmp_path: Path) -> None:
    waiting = {0: Event(), 1: Event()}

    def reply_when_both_have_asked(_: str) -> str:
        assert all(event.wait(5) for event in waiting.values())
        return "once"

    with endpoint(reply_when_both_have_asked) as server:
        judge = server.judge(tmp_path)

        def grade(number: int) -> str:
            waiting[number].set()
            return judge.reply(QUESTION).text

        assert judge.grade_all(waiting, grade) == ["once", "once"]
    assert len(server.received) == 1


def test_parameters_that_a_model_does_not_support_are_left_out_and_recorded(tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5", unsupported=("max_tokens", "temperature")) as server:
        judge = server.judge(tmp_path)
        replies = [judge.reply(ask(text)) for text in "ab"]
    last = server.received[-1]
    assert len(server.received) == 4  # rejected twice, then remembered
    assert "temperature" not in last and "max_tokens" not in last and last["max_completion_tokens"] == 3
    assert provenance(replies)["without"] == ["max_tokens, temperature"]


def test_the_model_and_every_part_of_a_request_identify_its_reply(tmp_path: Path) -> None:
    variants = [replace(QUESTION, max_tokens=8), replace(QUESTION, temperature=0.3)]
    variants += [replace(QUESTION, messages=(("user", "Grade."), ("user", "one"))), QUESTION]
    with endpoint(lambda _: "x") as server:
        for model in ("a/b", "a:b"):  # these share a file
            judge = server.judge(tmp_path, model=model)
            for request in variants * 2:
                judge.reply(request)
    assert len(server.received) == 2 * len(variants)


def test_a_repetition_is_another_request(tmp_path: Path) -> None:
    with endpoint(lambda _: str(len(server.received))) as server:
        judge = server.judge(tmp_path)
        assert [judge.reply(QUESTION, repeat).text for repeat in ("0", "1", "0")] == ["1", "2", "1"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_url_stops_at_once(tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with endpoint(lambda _: status) as server:
        judge = server.judge(tmp_path, concurrency=1, retries=5)
        assert judge.grade_all(range(50), lambda number: judge.reply(ask(str(number)))) == [None] * 50
    assert len(server.received) == 1
    assert len([line for line in caplog.records if line.levelno >= logging.WARNING]) == 1


def test_an_empty_account_stops_at_once(tmp_path: Path) -> None:
    with endpoint(lambda _: (429, {"error": {"message": "pay", "code": "insufficient_quota"}})) as server:
        judge = server.judge(tmp_path, concurrency=1)
        assert judge.grade_all(range(9), lambda number: judge.reply(ask(str(number)))) == [None] * 9
    assert len(server.received) == 1 and "quota" in judge.failure_reason


def test_the_key_reaches_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    caplog.set_level(logging.INFO)
    with endpoint(lambda text: 401 if text == "wrong" else "sure") as server:
        judge = server.judge(tmp_path, concurrency=1)
        assert judge.grade_all(["right", "wrong"], lambda text: judge.reply(ask(text)))[1] is None
    assert server.keys == ["Bearer sk-secret"] * 2
    assert "rejected" in judge.failure_reason and KEY_VARIABLE in judge.failure_reason
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "sk-secret" not in written + judge.failure_reason + caplog.text


def test_a_dead_endpoint_is_pending(tmp_path: Path) -> None:
    with endpoint(lambda _: "never") as server:
        pass
    judge = server.judge(tmp_path)
    assert judge.grade_all(range(40), lambda number: judge.reply(ask(str(number)))) == [None] * 40
    assert "does not respond" in judge.failure_reason


def test_an_endpoint_that_always_fails_is_given_up(tmp_path: Path) -> None:
    with endpoint(lambda _: 500) as server:
        judge = server.judge(tmp_path, concurrency=1)
        assert judge.grade_all(range(40), lambda number: judge.reply(ask(str(number)))) == [None] * 40
    assert len(server.received) == 3


def test_a_request_without_an_answer_in_time_is_pending(tmp_path: Path) -> None:
    with endpoint(lambda text: SILENCE if text == "slow" else "quick") as server:
        judge = server.judge(tmp_path, timeout_s=0.1)
        assert judge.grade_all(["slow", "fast"], lambda text: judge.reply(ask(text)).text) == [None, "quick"]


@pytest.mark.parametrize(
    "page",
    [
        {"error": "overloaded"},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["0.5"]}}]},
    ],
)
def test_a_page_that_is_no_chat_completion_is_pending(tmp_path: Path, page: dict[str, Any]) -> None:
    with endpoint(lambda _: (200, page)) as server:
        judge = server.judge(tmp_path)
        assert judge.grade_all([QUESTION], judge.reply) == [None]
    assert "not send a chat completion" in judge.failure_reason
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_rejected_request_does_not_stop_the_others(tmp_path: Path) -> None:
    with endpoint(lambda text: 400 if int(text) < 5 else "ok") as server:
        judge = server.judge(tmp_path, concurrency=1)
        assert judge.grade_all(range(6), lambda n: judge.reply(ask(str(n))).text) == [None] * 5 + ["ok"]


@pytest.mark.parametrize("text", ["", " \n", "I cannot"])
def test_replies_without_any_grade_are_no_score_unless_the_official_one_is_asked_for(tmp_path: Path, text: str) -> None:
    questions = {f"v1_{i}": {"imagename": "a.png", "question": "?", "answer": "a", "capability": ["rec"]} for i in "12"}
    (tmp_path / "mm-vet.json").write_text(json.dumps(questions))
    says = text
    with endpoint(lambda _: says) as server:
        score = {
            failures: from_conf("mmvet", tmp_path, judge=server.judge(tmp_path, official_failures=failures)).score(
                answers({"1": "a", "2": "b"})
            )
            for failures in (False, True)
        }
        says = "0.5"
        repaired = from_conf("mmvet", tmp_path, judge=server.judge(tmp_path)).score(answers({"1": "a", "2": "b"}))
    assert [(one.value, one.pending) for one in score.values()] == [(None, 0 if text.strip() else 2), (0.0, 0)]
    assert repaired.value == (None if text.strip() else 50.0)  # empty replies are not kept
    assert "judge.official_failures" in score[False].notes[0]


def test_unpaired_surrogates_are_sent_and_stored_as_question_marks(tmp_path: Path) -> None:
    with endpoint(lambda _: "0.5 \udcff") as server:
        assert server.judge(tmp_path).reply(ask("a \ud800")).text == "0.5 ?"
        assert server.judge(tmp_path).reply(ask("a \ud800")).text == "0.5 ?"
    assert server.prompts == ["a ?"]


def test_a_reply_cut_off_by_a_kill_is_requested_again(tmp_path: Path) -> None:
    with endpoint(lambda text: text.upper()) as server:
        judge = server.judge(tmp_path)
        for text in "ab":
            judge.reply(ask(text))
        file = tmp_path / "judge" / "gpt-4-0613.jsonl"
        file.write_bytes(file.read_bytes()[:-9])
        rerun = server.judge(tmp_path)
        assert [rerun.reply(ask(text)).text for text in "abc"] == ["A", "B", "C"]
    assert server.prompts == ["a", "b", "b", "c"]
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["A", "B", "C"]


def test_replies_stored_by_earlier_versions_are_found(tmp_path: Path) -> None:
    key = "a7916e6b3b5840054649986331cf4b9e29f8e49c4af3e8cbd72e4eb729e007f7"
    line = {"key": key, "model": "gpt-4-0613", "repeat": "1.0", "text": "8 7", "served": "gpt-4-0613",
            "created": "2025-12-01T10:00:00Z", "without": "max_tokens"}  # fmt: skip
    (tmp_path / "gpt-4-0613.jsonl").write_text(json.dumps(line) + "\n")
    found = ReplyCache(tmp_path, "gpt-4-0613").get_or_send(QUESTION, "1.0", unreachable)
    assert found == Reply("8 7", "gpt-4-0613", "2025-12-01T10:00:00Z", "max_tokens")


def test_processes_share_replies_and_the_first_one_counts(tmp_path: Path) -> None:
    first, second = replace(REPLY, text="first \u2028 line"), replace(REPLY, text="second")
    other = ReplyCache(tmp_path, "m")

    def send_while_another_process_stores_a_reply() -> Reply:
        other.get_or_send(QUESTION, "", lambda: first)
        return second

    cache = ReplyCache(tmp_path, "m")
    assert cache.get_or_send(QUESTION, "", send_while_another_process_stores_a_reply) == first
    other.get_or_send(ask("b"), "", lambda: second)
    assert cache.get_or_send(ask("b"), "", unreachable) == second
    assert ReplyCache(tmp_path, "m").get_or_send(QUESTION, "", unreachable) == first


@pytest.mark.parametrize("line", ['{"key": 1}', "no JSON", "[]", json.dumps({"key": "k", **vars(REPLY), "text": None})])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"m\.jsonl, byte 0"):
        ReplyCache(tmp_path, "m").get_or_send(QUESTION, "", unreachable)


def test_provenance_has_models_and_dates() -> None:
    replies = [Reply("", "gpt-4", "2026-02"), Reply("", "gpt-4", "2026-01")]
    assert provenance(replies) == {"served": ["gpt-4"], "from": "2026-01", "to": "2026-02"}
    assert provenance([]) == {}
