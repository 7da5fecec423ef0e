"""Where everything lies in a store: every key is made of names that pass the grammar."""

from __future__ import annotations

import pytest

from mlp_core.errors import NameRefused, StoreDamaged
from mlp_core.store import layout
from mlp_hookspecs.types import TaskKey

RUN = ("Flow", "20260131-094500-123456")
DIGEST = "sha256-" + "ab" * 32


def test_keys_are_what_the_format_says() -> None:
    """The keys of a run, of blobs, of what is deployed and of parts are those of the documented layout."""
    run = "flows/Flow/20260131-094500-123456/"
    journal = layout.journal(*RUN)
    assert journal == f"{run}journal"
    assert (layout.lock(*RUN), layout.logs(*RUN), layout.lease(*RUN)) == (f"{run}lock", f"{run}logs", f"{run}lease")
    assert (layout.seal(*RUN), layout.segments(*RUN)) == (f"{run}seal", f"{run}segments/")
    assert layout.segment(*RUN, "tags-1") == f"{run}segments/tags-1"
    assert layout.segment(*RUN, "x" * 200).endswith("x" * 200)
    assert layout.part(journal, 1, 3) == "parts/Flow/20260131-094500-123456/journal/1/00000003"
    assert layout.part(journal, 1, 3).startswith(layout.parts_of_run(*RUN))
    assert layout.parts_of_run(*RUN).startswith(layout.parts_of_flow("Flow"))
    assert layout.blob(DIGEST) == f"blobs/ab/{DIGEST}"
    assert layout.blueprint(DIGEST) == f"blueprints/{DIGEST}"
    assert layout.deployment("local", "daily") == "deployments/local/daily/"
    assert layout.target("local").endswith("/local/")


def test_environments_lie_beside_the_runs() -> None:
    """Locks and bundles go by their digests, answers by what was asked, names by a name and a tag."""
    digest = "sha256-" + "0" * 64
    assert layout.environment_lock(digest) == f"environments/locks/{digest}"
    asked = [layout.environment_answer(digest, platforms) for platforms in ((), ("osx-arm64", "linux-64"))]
    assert asked == [f"environments/answers/{digest}/any", f"environments/answers/{digest}/linux-64+osx-arm64"]
    assert layout.environment_name("team/tools", "latest") == "environments/names/team~tools/latest"
    bundles = [layout.environment_bundle(digest, platform) for platform in ("linux-64", "")]
    assert bundles == [f"environments/bundles/{digest}/linux-64", f"environments/bundles/{digest}/own"]
    assert layout.environment_segment(TaskKey("start"), 2) == f"environment.start.{TaskKey('start').task_id}.2"


def test_segments_are_named_by_what_they_commit() -> None:
    """A task's outcome has one name, its earlier attempts and logs others, and none leads out of the run."""
    key = TaskKey("train", (2, 1), 3)
    assert layout.task_segment(key) == "task.train.2-1~3"
    assert layout.task_segment(key, 0) == "task.train.2-1~3.0"
    assert layout.log_segment(key, 1) == "log.train.2-1~3.1"
    for name in ("", "a/b", "..", "a..b", "-a", "x" * 201):
        with pytest.raises(NameRefused):
            layout.segment(*RUN, name)


@pytest.mark.parametrize("digest", ["", "sha256-", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), f"../{DIGEST}"])
def test_what_is_no_digest_makes_no_key(digest: str) -> None:
    """A digest comes from what is stored, which is not trusted: one that is none is damage."""
    for make in (layout.blob, layout.blueprint):
        with pytest.raises(StoreDamaged, match="is no digest"):
            make(digest)


def test_what_a_listing_shows_leads_nowhere_else() -> None:
    """A name that was found may have any form, but for those that would lead out of its folder."""
    assert layout.found("flows/", "Löwe 1") == "flows/Löwe 1/"
    for name in ("", ".", "..", "a/b"):
        with pytest.raises(NameRefused, match="leads elsewhere"):
            layout.found("flows/", name)
