"""The docstring corpus, from a distribution made here and from a real one."""

import sys
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.sources.corpus import read_documents
from harness.sources.docstrings import SHORTEST_CHARACTERS, Docstrings, docstrings, is_heldout
from harness.testing import check_plugin
from tests.building import artifact, context

LONG = "Words about a thing that is documented well. " * 6 + "The end."


def install(site: Path, name: str, version: str, files: dict[str, str | bytes]) -> None:
    """Puts a distribution where importlib.metadata finds it."""
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def path_that_is(heldout: bool) -> str:
    return next(path for n in range(999) if is_heldout(path := f"probe/m{n}.py") is heldout)


@pytest.fixture
def probe(tmp_path, monkeypatch) -> str:
    site = tmp_path / "site"
    files = {
        path_that_is(False): f'"""Train. {LONG}"""\nraise RuntimeError("imported")\ndef f():\n    """Short."""\n',
        path_that_is(
            True
        ): f'class C:\n    """Heldout. {LONG}"""\n    def m(self):\n        """Heldout too. {LONG}"""\n',
        "probe/twin.py": f'def g():\n    """Train. {LONG}"""\n',
        "probe/broken.py": "def (:\n",
        "probe/zero.py": b'"""\x00"""',
        "probe/tests/test_it.py": f'"""Test. {LONG}"""\n',
        "probe/data.txt": LONG,
    }
    install(site, "harness_text_probe", "1.2", files)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return "harness-text-probe"


def fetch(reference: str, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch")
    Docstrings(reference).fetch(out, context=used)
    return artifact(out, "text"), used.report


def test_docstrings_is_a_proper_plugin():
    check_plugin("sources", Docstrings)


def test_documents_are_parsed_not_imported_split_by_file_and_said_once(probe, tmp_path):
    corpus, report = fetch(probe, tmp_path)
    train, heldout = read_documents(corpus, "train"), read_documents(corpus, "heldout")
    assert train == [f"Train. {LONG}"]
    assert heldout == [f"Heldout. {LONG}", f"Heldout too. {LONG}"]
    assert report.notes["packages"] == "harness-text-probe 1.2"
    assert (report.notes["documents_train"], report.notes["documents_heldout"]) == (1, 2)
    assert report.notes["characters_train"] == len(train[0])


def test_the_same_packages_give_the_same_bytes(probe, tmp_path):
    first, _ = fetch(probe, tmp_path / "a")
    second, _ = fetch(probe, tmp_path / "b")
    for name in ("train.txt", "heldout.txt"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_another_version_has_another_fingerprint(probe, tmp_path, monkeypatch):
    before = Docstrings(probe).fingerprint
    assert before == Docstrings(probe).fingerprint
    install(tmp_path / "newer", "harness_text_probe", "1.3", {"probe/m.py": ""})
    monkeypatch.setattr(sys, "path", [str(tmp_path / "newer"), *sys.path])
    assert Docstrings(probe).fingerprint != before


def test_the_order_of_distributions_does_not_matter():
    assert Docstrings("numpy, pydantic").fingerprint == Docstrings("pydantic,numpy").fingerprint


def test_a_distribution_that_is_not_installed_says_how_to_get_it(tmp_path):
    with pytest.raises(SourceError, match="pip install"):
        fetch("no-such-distribution-here", tmp_path)


def test_a_distribution_without_text_is_an_error(tmp_path, monkeypatch):
    install(tmp_path / "site", "harness_mute_probe", "1", {"mute.py": "x = 1\n"})
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    with pytest.raises(SourceError, match="too few docstrings"):
        fetch("harness-mute-probe", tmp_path)


@pytest.mark.parametrize("reference", ["", "numpy,,scipy", "../etc", "a b"])
def test_a_reference_that_names_no_distribution_is_refused(reference):
    with pytest.raises(ValueError, match="default"):
        Docstrings(reference)


def test_docstrings_come_in_the_order_of_their_lines_without_form_feeds_and_lone_surrogates():
    code = rb'''
"""one"""
class A:
    """two\f2"""
    async def f(self):
        r"""three \d"""
def g():
    """four \ud800"""
'''
    assert docstrings(code) == ["one", "two\n2", "three \\d", "four ?"]


def test_invalid_escapes_in_other_peoples_code_warn_nobody():
    assert docstrings(b'"""digits \\d"""\n') == ["digits \\d"]


def test_about_one_path_in_twenty_is_held_out():
    # 2000 fair draws at 1/20: mean 100, standard deviation sqrt(2000 * .05 * .95) = 9.7; five of those either side.
    assert 51 < sum(is_heldout(f"package/module_{n}.py") for n in range(2000)) < 149


def test_a_real_package_gives_a_usable_corpus(tmp_path):
    corpus, report = fetch("networkx", tmp_path)
    train, heldout = read_documents(corpus, "train"), read_documents(corpus, "heldout")
    assert not set(train) & set(heldout)
    assert min(map(len, train + heldout)) >= SHORTEST_CHARACTERS
    assert int(report.notes["characters_train"]) > 500_000
