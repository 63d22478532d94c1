"""Files of a pinned distribution: from what is installed, from a wheel, and never from anything else."""

import hashlib
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.interfaces import BuildReport, StageContext
from harness.sources import distribution
from harness.sources.wheel import Wheel
from harness.spec import Hardware


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return StageContext(
        artifacts={}, hardware=Hardware(), seed=0, scratch=scratch, progress=lambda _, __: None, report=BuildReport()
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "harness_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Makes pip's download give a wheel with these members."""

    def offering(members: dict[str, bytes]) -> None:
        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert command[:4] == [sys.executable, "-m", "pip", "download"]
            assert {"--no-deps", "--only-binary=:all:"} < set(command)
            write_wheel(Path(command[command.index("--dest") + 1]), members)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(distribution.subprocess, "run", run)

    return offering


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site folder with harness-probe 1.0 installed the way installers do it; gives the folder."""
    site = tmp_path / "site"
    (site / "probe").mkdir(parents=True)
    (site / "probe" / "data.json").write_bytes(b"[1]")
    info = site / "harness_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-probe\nVersion: 1.0\n")
    digest = urlsafe_b64encode(hashlib.sha256(b"[1]").digest()).rstrip(b"=").decode()
    record = f"probe/data.json,sha256={digest},3\nharness_probe-1.0.dist-info/RECORD,,\n../../bin/probe,,\n"
    (info / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.mark.parametrize(
    "reference", ["name", "name>=1", "name==", "==1", "-e x==1", "name==1 --index-url=x", "a/b==1"]
)
def test_a_reference_without_an_exact_version_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="name==version"):
        Wheel(reference)


@pytest.mark.parametrize("members", ["*.json", [], [""], [1]])
def test_members_that_are_no_list_of_patterns_are_refused(members: object) -> None:
    with pytest.raises(ValueError, match="list of patterns"):
        Wheel("name==1", members=members)  # type: ignore[arg-type]


def test_members_are_taken_from_the_wheel_by_pattern_and_keep_their_paths(
    out: Path, context: StageContext, offer: Callable[[dict[str, bytes]], None]
) -> None:
    offer({"p/data/a.json": b"1", "p/b.json": b"2", "p/code.py": b"x", "p/__pycache__/code.pyc": b"", "p/data/": b""})
    Wheel("harness-probe==1.0", members=["*.json"]).fetch(out, context=context)
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == {
        "p/data/a.json": b"1",
        "p/b.json": b"2",
    }
    assert context.report.notes["obtained_from"] == "harness_probe-1.0-py3-none-any.whl"


def test_a_pattern_that_matches_nothing_says_what_the_wheel_holds(
    out: Path, context: StageContext, offer: Callable[[dict[str, bytes]], None]
) -> None:
    offer({"p/b.json": b"2"})
    with pytest.raises(SourceError, match=r"harness-probe==1.0 matches \['\*.gguf'\]") as raised:
        Wheel("harness-probe==1.0", members=["*.gguf"]).fetch(out, context=context)
    assert "p/b.json" in str(raised.value)


@pytest.mark.parametrize("name", ["../evil.json", "p/../../evil.json", "/evil.json", "p\\..\\evil.json"])
def test_a_member_that_points_outside_is_refused_and_nothing_is_written_there(
    name: str, tmp_path: Path, out: Path, context: StageContext, offer: Callable[[dict[str, bytes]], None]
) -> None:
    offer({name: b"evil"})
    with pytest.raises(SourceError, match="points outside"):
        Wheel("harness-probe==1.0", members=["*"]).fetch(out, context=context)
    assert not list(tmp_path.rglob("*evil*"))


def test_an_installed_distribution_of_that_version_is_copied_without_pip(
    out: Path, context: StageContext, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution.subprocess, "run", None)
    Wheel("harness-probe==1.0").fetch(out, context=context)
    assert [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()] == ["probe/data.json"]
    assert context.report.notes["obtained_from"] == "installed distribution"


@pytest.mark.parametrize("reference", ["harness-probe==1.0", "harness-probe==2.0"])
def test_an_edited_file_or_another_version_is_not_passed_off_as_the_pinned_one(
    reference: str, out: Path, context: StageContext, installed: Path, offer: Callable[[dict[str, bytes]], None]
) -> None:
    if reference.endswith("1.0"):
        (installed / "probe" / "data.json").write_bytes(b"[2]")
    offer({"probe/data.json": b"published"})
    Wheel(reference).fetch(out, context=context)
    assert (out / "probe" / "data.json").read_bytes() == b"published"


def test_what_pip_cannot_download_names_the_reference_and_a_remedy(
    out: Path, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SourceError, match=r"harness-no-such-package==9\.9") as raised:
        Wheel("harness-no-such-package==9.9").fetch(out, context=context)
    assert "go online" in str(raised.value)


def test_the_installed_copy_and_its_record_agree_for_a_real_package(out: Path, context: StageContext) -> None:
    name = "iniconfig"  # a dependency of pytest, so always here
    Wheel(f"{name}=={metadata.version(name)}", members=["iniconfig/*.py"]).fetch(out, context=context)
    assert (out / "iniconfig" / "__init__.py").is_file()
    assert context.report.notes["obtained_from"] == "installed distribution"
