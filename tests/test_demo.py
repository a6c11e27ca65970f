"""The demo in small: real files, real processes, real kills, and figures that are measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from shell import TIMEOUT_S, dasync_json, environment, fails, python

from dasync.demo import run, survey
from dasync.demo.survey import Count

SMALL = ("--files", "40", "--workers", "2")


def test_the_survey_survives_two_kills(tmp_path: Path) -> None:
    """Equal results though a worker and the coordinator were killed; each promise settled once; the store is kept."""
    store = str(tmp_path / "demo.db")
    said = dasync_json("demo", *SMALL, "--store", store)
    assert (said["equal"], said["settled_once"], said["files"], said["workers"]) == (True, True, 40, 2)
    assert said["promises"] == said["settled"] == 41
    kills = said["kills"]
    assert isinstance(kills, list)
    worker, coordinator = kills
    assert worker["process"].startswith("worker-")
    assert coordinator["process"] == "coordinator"
    assert 0 < worker["done"] <= coordinator["done"] <= 40
    assert worker["in_flight"] >= 1
    twice = said["ran_twice"]
    assert isinstance(twice, dict)
    assert twice["survey"] == 1
    assert 0 <= twice["count"] <= worker["in_flight"]
    total, table = said["total"], said["table"]
    assert isinstance(total, dict)
    assert isinstance(table, list)
    assert total["files"] == sum(row["files"] for row in table) == 40
    assert total["lines"] == sum(row["lines"] for row in table) > 0
    tree = dasync_json("tree", str(said["promise"]), "--store", store)
    promises = tree["promises"]
    assert isinstance(promises, list)
    assert len(promises) == 41
    assert max(one["task"]["version"] for one in promises[1:]) == 2  # taken over from the killed worker
    assert promises[0]["task"]["version"] == 2


def test_the_demo_tells_people() -> None:
    """Plain lines where there is no terminal: progress, the table and the verdict; nobody is killed with --no-kill."""
    said = python("-m", "dasync", "demo", *SMALL, "--no-kill").splitlines()
    assert "plain loop: 40 of 40 files" in said
    assert "dasync: 40 of 40 files" in said
    assert "equal to a single-process run: yes" in said
    assert "each promise settled exactly once: yes (41 settled of 41)" in said
    assert "ran twice: 0 of 40 counts" in said
    assert not [line for line in said if line.startswith("killed")]
    assert any(line.startswith("package ") for line in said)
    assert any(line.startswith("time: plain loop ") for line in said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for child processes in /proc")
def test_nobody_is_left_behind_after_an_interrupt(tmp_path: Path) -> None:
    """Ctrl-C ends the demo with every process that it started, and takes its folder away."""
    environ = environment(TMPDIR=str(tmp_path))
    command = [sys.executable, "-m", "dasync", "demo", "--files", "200", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("kill -9"):
                break
        crew = _children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == run.INTERRUPTED
    assert len(crew) >= 2
    assert not [pid for pid in crew if _is_alive(pid)]
    assert not list(tmp_path.glob("dasync-demo-*"))


def test_the_demo_wants_a_new_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that exists is not taken for the demo's store."""
    (tmp_path / "mine.db").touch()
    status, error = fails(capsys, "demo", "--store", str(tmp_path / "mine.db"))
    assert status == 1
    assert "name a new file" in error


def test_the_choice_of_files_is_always_the_same() -> None:
    """Sorted, spread over the whole library, without site-packages; never more than there are."""
    chosen = survey.choose(50)
    assert chosen == sorted(chosen) == survey.choose(50)
    assert len({Path(path).parts[0] for path in chosen}) > 10
    assert not [path for path in chosen if "site-packages" in path]
    assert 600 < len(survey.choose(100_000)) < 100_000


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (b"def f(): pass\n\n# comment\nasync def g():\n    return 1\n", Count(1, 5, 14, 2, 0)),
        (b"", Count(1, 0, 0, 0, 0)),
        (b"print 'python 2'\n", Count(1, 1, 2, 0, 1)),
        (b"# coding: no-such\n", Count(1, 1, 0, 0, 1)),
        (b"x = '\xf6'\n", Count(1, 1, 0, 0, 1)),
        (b"x = 1\0\n", None),
        (b"(" * 300 + b")" * 300, None),
        (b"x = (\n", None),
        (b"s = '\\d'\n", Count(1, 1, 3, 0, 0)),
    ],
)
def test_odd_files_are_counted_as_far_as_they_go(
    source: bytes, count: Count | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that this Python cannot read to the end is odd, and no error; where Pythons differ, only that is fixed."""
    (tmp_path / "odd.py").write_bytes(source)
    monkeypatch.setattr(survey, "library", lambda: tmp_path)
    found = survey.measure("odd.py")
    if count is None:
        assert (found.files, found.lines, found.odd) == (1, source.count(b"\n"), 1)
    else:
        assert found == count


def test_a_wrong_result_is_told() -> None:
    """The verdict is computed: a survey that comes to something else says no, and the status is 1."""
    program = (
        "import sys; from dasync.cli import main; from dasync.demo import survey;"
        "right = survey.measure; survey.measure = lambda path: right(path) + survey.Count(lines=1);"
        f"sys.exit(main(['demo', '--no-kill', *{SMALL!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment()
    )
    assert "equal to a single-process run: no" in done.stdout
    assert done.returncode == 1


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended meanwhile
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found.append(int(status.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
