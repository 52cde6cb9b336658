"""Jobs are real processes here, of a shell that stands for the verb."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from updater.bus import jobs
from updater.bus.errors import JobRunsError
from updater.bus.jobs import Jobs
from updater.client import Reply

REPLY = '{"status":4,"code":"nothing-newer","sentence":"none","hint":"none"}'


def run(command: str, scene: Callable[[Jobs], Awaitable[None]]) -> list[tuple[int, Reply]]:
    """Run a scene with jobs that are `sh -c command`, and return how they ended."""
    ended: list[tuple[int, Reply]] = []

    async def play() -> None:
        mine = Jobs(["sh", "-c", command], lambda number, reply: ended.append((number, reply)))
        await scene(mine)
        async with asyncio.timeout(60):
            while mine.active:  # noqa: ASYNC110  # the end is what is tested
                await asyncio.sleep(0.005)

    asyncio.run(play())
    return ended


async def check(mine: Jobs) -> None:
    mine.begin("check", {}, by="root")


def test_a_job_ends_with_the_reply_of_its_process() -> None:
    [(number, reply)] = run(f"echo '{REPLY}'", check)
    assert (number, reply.status, reply.code) == (1, 4, "nothing-newer")


@pytest.mark.parametrize("command", ["exit 3", "echo nonsense; exit 3", "kill -9 $$"])
def test_a_process_without_a_reply_is_a_failed_job(command: str) -> None:
    [(_, reply)] = run(command, check)
    assert (reply.status, reply.code) == (1, "internal")
    assert "check ended with status" in reply.sentence


def test_a_process_that_says_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REPLY_MAX_BYTES", 1000)
    [(_, reply)] = run("exec yes", check)
    assert reply.code == "internal"


def test_a_program_that_is_not_there_is_a_failed_job() -> None:
    async def play() -> list[Reply]:
        ended: list[Reply] = []
        mine = Jobs(["/nowhere/at/all"], lambda _, reply: ended.append(reply))
        await check(mine)
        while mine.active:  # noqa: ASYNC110  # the end is what is tested
            await asyncio.sleep(0.005)
        return ended

    [reply] = asyncio.run(play())
    assert "cannot be started" in reply.sentence


def test_options_and_caller_reach_the_process(tmp_path: Path) -> None:
    async def update(mine: Jobs) -> None:
        mine.begin("update", {"version": "2.0.0", "force": True}, by="ann")

    run(f'printf "%s|" "$0" "$@" > {tmp_path}/said; echo {{}}', update)
    assert (tmp_path / "said").read_text() == (
        'update|{"version": "2.0.0", "force": true}|--by|ann|'
    )


def test_one_of_a_kind_and_a_few_of_all_run_at_once() -> None:
    async def scene(mine: Jobs) -> None:
        for name in ("a", "b", "c", "d"):
            mine.begin(name, {}, by="root")
        with pytest.raises(JobRunsError, match="a is under way already"):
            mine.begin("a", {}, by="root")
        with pytest.raises(JobRunsError, match="4 jobs are under way already"):
            mine.begin("e", {}, by="root")

    numbers = [number for number, _ in run("sleep 0.1", scene)]
    assert sorted(numbers) == [1, 2, 3, 4]


def test_the_end_of_the_service_is_told_and_waited_for(tmp_path: Path) -> None:
    flushes = f"trap 'touch {tmp_path}/flushed; exit 0' TERM; touch {tmp_path}/began; "

    async def scene(mine: Jobs) -> None:
        mine.begin("update", {}, by="root")
        while not (tmp_path / "began").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.005)
        await mine.close()
        assert (tmp_path / "flushed").exists()  # likewise

    run(flushes + "while :; do sleep 0.01; done", scene)


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "FAREWELL_SECS", 0.05)

    async def scene(mine: Jobs) -> None:
        mine.begin("update", {}, by="root")
        while not (tmp_path / "began").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.005)
        await mine.close()

    deaf = f"{sys.executable} -c 'import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); "
    deaf = f'exec {deaf}pathlib.Path("{tmp_path}/began").touch(); time.sleep(3600)\''
    [(_, reply)] = run(deaf, scene)
    assert reply.sentence == "update ended with status -9 and no reply"
