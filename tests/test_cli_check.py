"""`dasync check`: which files it reads, what it says of them, and how it ends. What is a hazard: test_analysis.py."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from shell import ROOT, TIMEOUT_S, environment, fails

from dasync.analysis.hazards import Checked, Finding
from dasync.cli import main

SHOP = """import time
import dasync
from tools import stamp

@dasync.function
async def order() -> float:
    await dasync.sleep(1)
    return stamp()
"""
TOOLS = """import time

def stamp():
    return time.time()
"""
SAID = """tools.py:4:12: clock: in 'order' time.time() tells another time in a replay; use dasync.now()
    return time.time()
2 files, 1 function that invokes, 1 finding
"""
NO_IMPORT = 'raise RuntimeError("this was imported")\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a program of two files in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("DASYNC_APP", raising=False)
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str], *apps: str) -> Checked:
    """What `check --json` prints."""
    status = main(("check", "--json", *apps))
    out, error = capsys.readouterr()
    assert error == ""
    said: Checked = json.loads(out)
    assert status == bool(said["findings"])
    return said


@pytest.mark.parametrize("apps", [["shop.py"], ["shop"], ["."], ["shop.py", "tools.py", "shop"]])
def test_a_program_is_what_is_named_and_what_it_imports_beside_itself(
    apps: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file, a module, a folder, or several, each file once; each finding with its line, then what was looked at."""
    assert main(("check", *apps)) == 1
    assert capsys.readouterr() == (SAID, "")


def test_the_program_may_come_from_the_environment(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DASYNC_APP names it where no argument does."""
    monkeypatch.setenv("DASYNC_APP", "shop")
    assert main(("check",)) == 1
    assert capsys.readouterr().out == SAID
    assert main(("check", "tools.py")) == 0
    assert capsys.readouterr().out == "1 file, 0 functions that invoke, 0 findings\n"


def test_json_has_stable_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the help tells."""
    said = checked(capsys, "shop.py")
    assert set(said) == set(Checked.__annotations__)
    assert [set(one) for one in said["findings"]] == [set(Finding.__annotations__)]
    with pytest.raises(SystemExit):
        main(("check", "--help"))
    told = capsys.readouterr().out
    assert all(key in told for key in (*Checked.__annotations__, *Finding.__annotations__))


def test_what_is_excused_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no finding, and exit status 0."""
    (folder / "tools.py").write_text(TOOLS.replace("time()", "time()  # dasync: ok"))
    assert main(("check", "shop.py")) == 0
    assert capsys.readouterr().out == "2 files, 1 function that invokes, 0 findings (1 excused)\n"


def test_nothing_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the program nor the packages that it is in, whose modules are found all the same."""
    for place in ("pack/sub", "bare"):
        (folder / place).mkdir(parents=True)
    for file in ("pack/__init__.py", "pack/sub/__init__.py", "bare/orders.py"):
        (folder / file).write_text(NO_IMPORT)
    (folder / "pack/sub/orders.py").write_text(NO_IMPORT + SHOP.replace("tools", "pack.sub.stamps"))
    (folder / "pack/sub/stamps.py").write_text(NO_IMPORT + TOOLS)
    found = {"path": "pack/sub/stamps.py", "line": 5}
    for app, files in ("pack.sub.orders", 4), ("pack.sub", 4), ("pack", 4), ("pack/sub/orders.py", 4):
        said = checked(capsys, app)
        assert [{key: one[key] for key in found} for one in said["findings"]] == [found]
        assert said["files"] == files, app
    assert checked(capsys, "bare.orders")["files"] == 1
    assert not {"pack", "bare", "pack.sub"} & set(sys.modules)


def test_a_folder_is_read_without_what_is_not_the_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hidden folders, environments and caches hold no sources of the program."""
    for place in (".git", "env", "__pycache__", "deep/er"):
        (folder / place).mkdir(parents=True)
        (folder / place / "shop.py").write_text("syntax error" if place != "deep/er" else "")
    (folder / "env/pyvenv.cfg").touch()
    assert checked(capsys, ".")["files"] == 3


def test_installed_packages_are_not_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies beside an installed module is none of its program."""
    said = checked(capsys, "json.tool")
    assert (said["files"], said["findings"]) == (2, [])  # with its package


@pytest.mark.parametrize(
    ("apps", "what"),
    [
        (["nowhere.py"], "there is no file nowhere.py; give"),
        (["nowhere"], "there is no module 'nowhere'"),
        (["shop.nowhere"], "there is no source of the module 'shop.nowhere'"),
        (["json.nowhere"], "there is no source of the module 'json.nowhere'"),
        (["sys"], "there is no source of the module 'sys'"),
        (["empty"], "there is no Python file in"),
        (["broken.py"], "broken.py:2:7: invalid syntax; correct it first"),
        (["user.py"], "broken.py:2:7: invalid syntax; correct it first"),
        (["shop.py", "broken.py"], "broken.py:2:7: invalid syntax; correct it first"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    apps: list[str], what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of that name, nothing in it, or no Python, with file and line; exit status 1."""
    (folder / "empty").mkdir()
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    (folder / "user.py").write_text("import broken\n")
    status, error = fails(capsys, "check", *apps)
    assert status == 1
    assert error.startswith(f"dasync: {what}")


def test_our_own_programs_are_free_of_hazards() -> None:
    """As a person runs it."""
    command = [sys.executable, "-m", "dasync", "check", "examples", "dasync/demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 0 findings (1 excused)\n")


@pytest.mark.parametrize(("after_s", "told"), [(0.0, True), (60.0, False)])
def test_what_takes_long_is_told_on_a_terminal(after_s: float, told: bool, folder: Path) -> None:
    """Which file is looked at, on stderr, once it has taken some time; not before."""
    leader, follower = pty.openpty()
    text = f"from dasync.cli import check, main\ncheck.TELL_AFTER_S = {after_s}\nmain(['check', 'shop.py'])"
    env = environment() | {"TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=follower, env=env) as process:
        os.close(follower)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    said = b""
    try:
        while chunk := os.read(leader, 65536):
            said += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(leader)
    assert out.decode() == SAID
    assert (b"checks tools.py" in said) is told
    assert told or said == b""
