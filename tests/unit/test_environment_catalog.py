"""The environments of a store: what names stand for, what is found by which text, and what is damaged or swapped."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import attrs
import pytest

from mlp_core.environments.catalog import Catalog, is_digest, is_pathspec, split_name
from mlp_core.environments.records import Answer, KeptLock
from mlp_core.errors import NameRefused, NotFound, StoreDamaged, StoreUntrusted, UsageError
from mlp_core.store import Store, layout
from mlp_core.store.checked import with_checksum
from mlp_core.store.signing import Signer
from mlp_hookspecs import ArtifactRef, EnvironmentLock, EnvironmentSpec, wire

if TYPE_CHECKING:
    from pathlib import Path

LINUX = ("linux-64",)


def lock(content: str = "numpy==2.0", **fields: object) -> EnvironmentLock:
    """Return a lock."""
    return attrs.evolve(EnvironmentLock("toy", content, "3.12"), **fields)  # type: ignore[arg-type] # its fields


def spec(text: str = "numpy") -> EnvironmentSpec:
    """Return a requirement."""
    return EnvironmentSpec("toy", {"packages": text})


def kept(store: Store, content: str = "numpy==2.0", text: str = "numpy") -> EnvironmentLock:
    """Keep a lock as the answer to a requirement."""
    made = lock(content)
    Catalog(store, "ada").keep(spec(text), made, LINUX)
    return made


def bundle_files() -> dict[str, ArtifactRef]:
    """Return the files of a bundle."""
    return {"wheels/a.whl": ArtifactRef("bytes", "sha256-" + "1" * 64, 3, "builtins.bytes", data=b"abc")}


def test_a_requirement_is_answered_with_what_was_kept(any_store: Store) -> None:
    """The answer holds for the same requirement and the same platforms, in any order, and for no others."""
    catalog = Catalog(any_store, "ada")
    made = lock(packages={"numpy": "2.0"}, has_own_packages=True)
    catalog.keep(spec(), made, ("osx-arm64", "linux-64"))
    assert catalog.answer(spec(), ("linux-64", "osx-arm64")) == made
    assert catalog.answer(spec(), LINUX) is None
    assert catalog.answer(spec("pandas"), ("linux-64", "osx-arm64")) is None
    assert catalog.kept(made.digest).username == "ada"
    assert [each.lock for each in catalog.locks()] == [made]
    with pytest.raises(NotFound, match="there is no environment"):
        catalog.kept(lock("other").digest)


def test_what_is_added_to_an_environment_is_kept_with_its_base(any_store: Store) -> None:
    """A kept lock tells the base of its requirement by its digest alone."""
    base = kept(any_store)
    added = attrs.evolve(spec("shap"), base=base)
    Catalog(any_store).keep(added, lock("shap==1"), LINUX)
    found = Catalog(any_store).kept(lock("shap==1").digest)
    assert (found.base, found.spec.base) == (base.digest, None)


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [("fraud", "fraud", "latest"), ("fraud/scoring:v1.2", "fraud/scoring", "v1.2"), ("a:Stable_1", "a", "Stable_1")],
)
def test_names_are_split(text: str, name: str, tag: str) -> None:
    """A name without a tag is the latest."""
    assert split_name(text) == (name, tag)


@pytest.mark.parametrize(
    "text",
    [
        "", ":v1", "Fraud", "fraud:", "fraud:a:b", "fraud:a/b", "fraud/", "/fraud", "a//b", "../a", "a/../b", "a/..",
        "fraud:..", "fraud:.", "a~b", "a\n", "a b", "é", "a\0", "0123abcd", "sha256-0123abcd", "x" * 1000,
        "Flow/20260131-094500-123456",
    ],
)  # fmt: skip
def test_names_outside_of_the_grammar_are_refused(text: str, any_store: Store) -> None:
    """What could lead elsewhere, or be taken for a digest or a run, is no name; nothing is written."""
    with pytest.raises(NameRefused):
        Catalog(any_store).name(text, lock().digest)
    assert list(any_store.objects.list(layout.ENVIRONMENTS)) == []


def test_digests_and_pathspecs_are_told_from_names() -> None:
    """Eight hex digits are a digest, and a flow with a run's id is a pathspec."""
    assert is_digest("0123abcd")
    assert is_digest("sha256-" + "f" * 64)
    assert not any(is_digest(text) for text in ("0123abc", "f" * 65, "0123ABCD", "fraud"))
    assert is_pathspec("Flow/20260131-094500-123456/start")
    assert not is_pathspec("explainer/20260131-094500-123456:v1")
    assert not is_pathspec("fraud/scoring")


def test_only_some_tags_move(any_store: Store) -> None:
    """latest, candidate and stable stand for whatever came last; any other tag for one lock for good."""
    first, second = kept(any_store, "1"), kept(any_store, "2")
    catalog = Catalog(any_store)
    for tag in ("latest", "candidate", "stable"):
        catalog.name(f"fraud:{tag}", first.digest)
        catalog.name(f"fraud:{tag}", second.digest)
        assert catalog.find(f"fraud:{tag}") == second
    before = catalog.name("fraud:v1", first.digest)
    assert catalog.name("fraud:v1", first.digest) == before
    with pytest.raises(UsageError, match="does not move"):
        catalog.name("fraud:v1", second.digest)
    assert catalog.find("fraud:v1") == first
    assert {str(each) for each in catalog.named()} == {
        f"fraud:{tag}" for tag in ("latest", "candidate", "stable", "v1")
    }


def test_of_two_writers_of_an_immutable_tag_one_wins(any_store: Store) -> None:
    """Whoever comes second learns of it, and what the name stands for is what the first was told."""
    locks = [kept(any_store, str(number)) for number in range(8)]
    barrier = threading.Barrier(len(locks))
    won: list[str] = []

    def write(digest: str) -> None:
        barrier.wait()
        with contextlib.suppress(UsageError):
            won.append(Catalog(any_store).name("race:v1", digest).lock_digest)

    threads = [threading.Thread(target=write, args=(each.digest,)) for each in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [Catalog(any_store).find("race:v1").digest]


def test_the_beginning_of_a_digest_is_enough_while_it_is_one_locks(any_store: Store) -> None:
    """Eight digits are looked up; several locks that begin alike are refused, and so is none."""
    made = kept(any_store)
    catalog = Catalog(any_store)
    assert catalog.find(made.digest) == catalog.find(made.digest[7:15]) == catalog.find(made.digest[:20]) == made
    twin = made.digest[:15] + ("0" if made.digest[15] != "0" else "1") + made.digest[16:]
    any_store.objects.create(layout.environment_lock(twin), b"", sync=False)
    with pytest.raises(UsageError, match="2 environments begin with"):
        catalog.find(made.digest[7:15])
    with pytest.raises(NotFound):
        catalog.find("f" * 64)


def test_a_name_that_is_unknown_is_told_with_what_is_near(any_store: Store) -> None:
    """The error names the tags that there are, or the name that was meant."""
    made = kept(any_store)
    catalog = Catalog(any_store)
    catalog.name("fraud:v1", made.digest)
    with pytest.raises(NotFound) as other_tag:
        catalog.find("fraud:v2")
    with pytest.raises(NotFound) as other_name:
        catalog.find("frauds:v1")
    assert "v1" in other_tag.value.hint
    assert "fraud" in other_name.value.hint
    catalog.unname("fraud:v1")
    with pytest.raises(NotFound):
        catalog.unname("fraud:v1")


def test_a_lock_that_a_name_stands_for_is_not_removed(any_store: Store) -> None:
    """Without names it goes with its bundles, and its answer is none any more."""
    made = kept(any_store)
    catalog = Catalog(any_store)
    catalog.name("fraud", made.digest)
    catalog.add_bundle(made.digest, "linux-64", bundle_files())
    with pytest.raises(UsageError, match="fraud:latest"):
        catalog.remove(made.digest)
    catalog.unname("fraud")
    catalog.remove(made.digest)
    assert catalog.answer(spec(), LINUX) is None
    assert catalog.bundles(made.digest) == []


def test_bundles_are_kept_by_platform(any_store: Store) -> None:
    """The own packages alone have an empty platform, and a platform without a bundle has none."""
    made = kept(any_store)
    catalog = Catalog(any_store)
    own = catalog.add_bundle(made.digest, "", bundle_files())
    whole = catalog.add_bundle(made.digest, "linux-64", bundle_files())
    assert {each.platform for each in catalog.bundles(made.digest)} == {"", "linux-64"}
    assert catalog.bundle(made.digest, "") == own
    assert catalog.bundle(made.digest, "linux-64") == whole
    assert catalog.bundle(made.digest, "osx-64") is None
    assert own.size == 3


def keys(store: Store) -> list[str]:
    """Return the keys of all environments' objects."""
    return sorted(info.key for info in store.objects.list(layout.ENVIRONMENTS))


def use(store: Store, made: EnvironmentLock, key: str) -> object:
    """Read what lies under a key as whoever uses it does."""
    catalog = Catalog(store)
    if "/answers/" in key:
        return catalog.answer(spec(), LINUX)
    if "/names/" in key:
        return catalog.find("fraud:v1")
    return catalog.bundle(made.digest, "linux-64") if "/bundles/" in key else catalog.kept(made.digest)


def full(store: Store) -> EnvironmentLock:
    """Put one object of each kind into a store."""
    made = kept(store)
    Catalog(store).name("fraud:v1", made.digest)
    Catalog(store).add_bundle(made.digest, "linux-64", bundle_files())
    return made


def test_a_changed_byte_is_never_used(bucket_store: Store) -> None:
    """Whatever is flipped, cut off or added in any object: it is refused, and an answer is none."""
    made = full(bucket_store)
    for key in keys(bucket_store):
        stored = bucket_store.objects.read(key)
        bare = stored[9:-1]
        middle = len(stored) // 2
        flipped = stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
        for damaged in (flipped, stored[:-1], stored + b"\n", b"", bare, b"\0" * len(stored)):
            bucket_store.objects.replace(key, damaged, sync=False)
            if "/answers/" in key:
                assert use(bucket_store, made, key) is None
            else:
                with pytest.raises(StoreDamaged):
                    use(bucket_store, made, key)
        bucket_store.objects.replace(key, stored, sync=False)
        assert use(bucket_store, made, key) is not None


def test_a_swapped_object_is_never_used(bucket_store: Store) -> None:
    """What was written under another key, or is another lock's behind a right checksum, is refused."""
    made = full(bucket_store)
    other = kept(bucket_store, "evil==1", "evil")
    theirs = bucket_store.objects.read(layout.environment_lock(other.digest))
    key = layout.environment_lock(made.digest)
    for stored in (theirs, with_checksum(key, theirs[9:-1])):
        bucket_store.objects.replace(key, stored, sync=False)
        with pytest.raises(StoreDamaged):
            Catalog(bucket_store).kept(made.digest)
        assert Catalog(bucket_store).answer(spec(), LINUX) is None
    bundle_key = layout.environment_bundle(other.digest, "linux-64")
    mine = bucket_store.objects.read(layout.environment_bundle(made.digest, "linux-64"))
    bucket_store.objects.replace(bundle_key, with_checksum(bundle_key, mine[9:-1]), sync=False)
    with pytest.raises(StoreDamaged, match="another environment's"):
        Catalog(bucket_store).bundle(other.digest, "linux-64")


def test_a_damaged_lock_is_written_anew_with_the_next_resolve(bucket_store: Store) -> None:
    """Whoever keeps a lock mends what lies there."""
    made = kept(bucket_store)
    bucket_store.objects.replace(layout.environment_lock(made.digest), b"x", sync=False)
    assert Catalog(bucket_store).answer(spec(), LINUX) is None
    kept(bucket_store)
    assert Catalog(bucket_store).answer(spec(), LINUX) == made


def test_where_records_are_signed_others_are_not_used(own_cache: Path, bucket_store: Store) -> None:
    """An unsigned lock, name or bundle is refused, an unsigned answer is none, and signed ones are used."""
    del own_cache
    made = full(bucket_store)
    signing = Store.open(bucket_store.objects, create=False, signer=Signer(b"k" * 32))
    for key in keys(bucket_store):
        if "/answers/" in key:
            assert use(signing, made, key) is None
        else:
            with pytest.raises(StoreUntrusted, match="not signed"):
                use(signing, made, key)
    catalog = Catalog(signing)
    catalog.keep(spec(), made, LINUX)
    catalog.name("mine", made.digest)
    assert catalog.answer(spec(), LINUX) == made == catalog.find("mine")
    assert Catalog(bucket_store).find("mine") == made
    stranger = Store.open(bucket_store.objects, create=False, signer=Signer(b"s" * 32))
    assert Catalog(stranger).answer(spec(), LINUX) is None


def test_an_old_answer_is_made_new_by_who_is_going_to_use_it(bucket_store: Store) -> None:
    """A look alone changes nothing, and a young answer is left as it is."""
    made = kept(bucket_store)
    key = layout.environment_answer(spec().digest, LINUX)
    young = bucket_store.objects.read(key)
    catalog = Catalog(bucket_store)
    assert catalog.answer(spec(), LINUX, renew=True) == made
    assert bucket_store.objects.read(key) == young
    old = with_checksum(key, wire.dumps(Answer(spec().digest, made.digest, 1.0)))
    bucket_store.objects.replace(key, old, sync=False)
    assert catalog.answer(spec(), LINUX) == made
    assert bucket_store.objects.read(key) == old
    assert catalog.answer(spec(), LINUX, renew=True) == made
    assert bucket_store.objects.read(key) != old


def test_records_survive_being_written() -> None:
    """What is kept of a lock is what is read."""
    record = KeptLock(spec(), "", lock(packages={"a": "1"}), 1.5, "ada")
    assert wire.loads(KeptLock, wire.dumps(record)) == record


def test_what_goes_while_it_is_listed_is_left_out(bucket_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lists beside a removal sees what is still there."""
    made, catalog = full(bucket_store), Catalog(bucket_store)
    children = bucket_store.objects.children
    ghosts = {"locks/": "sha256-" + "0" * 64, "fraud/": "v2"}

    def listed(prefix: str) -> list[str]:
        return [*children(prefix), *(name for end, name in ghosts.items() if prefix.endswith(end))]

    monkeypatch.setattr(bucket_store.objects, "children", listed)
    assert [each.lock for each in catalog.locks()] == [made]
    assert [str(each) for each in catalog.named()] == ["fraud:v1"]
