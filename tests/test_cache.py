"""The cache: an artifact is there whole or not at all, and its bytes are the ones that were built."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cache import Cache
from harness.errors import CorruptArtifact
from harness.record import ArtifactFacts

FACTS = ArtifactFacts(lineage=(), format="files", digest="", size_bytes=0)
names = st.text(alphabet="abcdefgh", min_size=1, max_size=8)


def put(cache: Cache, key: str, files: dict[str, bytes]):
    with cache.building(key) as out:
        for name, data in files.items():
            (out / name).write_bytes(data)
        return cache.commit(key, FACTS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(files=st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=4))
def test_an_artifact_comes_back_as_it_was_put(tmp_path_factory, files) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    made = put(cache, "key", files)
    cache.verify("key")
    found = cache.get("key")
    assert found == made
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == files
    assert found.size_bytes == sum(map(len, files.values()))


def test_the_digest_depends_on_names_and_bytes_and_nothing_else(tmp_path) -> None:
    cache = Cache(tmp_path)
    digests = {
        key: put(cache, key, files).digest
        for key, files in {"a": {"x": b"1"}, "same": {"x": b"1"}, "name": {"y": b"1"}, "bytes": {"x": b"2"}}.items()
    }
    assert digests["a"] == digests["same"]
    assert len(set(digests.values())) == 3


def test_a_build_that_raises_leaves_nothing_under_the_key(tmp_path) -> None:
    cache = Cache(tmp_path)

    def build_half() -> None:
        with cache.building("key") as out:
            (out / "half").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build_half()
    assert cache.get("key") is None
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_scratch_is_kept_until_the_build_is_done(tmp_path) -> None:
    cache = Cache(tmp_path)
    (cache.scratch("key") / "checkpoint").write_bytes(b"x")
    assert (cache.scratch("key") / "checkpoint").exists()
    put(cache, "key", {"x": b"1"})
    assert not (tmp_path / "scratch" / "key").exists()


def test_a_changed_byte_is_noticed_by_verify_and_a_missing_file_by_get(tmp_path) -> None:
    cache = Cache(tmp_path)
    file = put(cache, "key", {"x": b"1"}).path / "x"
    file.write_bytes(b"2")
    with pytest.raises(CorruptArtifact, match="SHA-256"):
        cache.verify("key")
    file.unlink()
    with pytest.raises(CorruptArtifact, match="None bytes"):
        cache.get("key")


def test_a_manifest_of_another_schema_is_not_used(tmp_path) -> None:
    cache = Cache(tmp_path)
    put(cache, "key", {"x": b"1"})
    file = cache.folder("key") / "artifact.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(CorruptArtifact, match="schema 7"):
        cache.get("key")
