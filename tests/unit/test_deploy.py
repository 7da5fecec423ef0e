"""Versions of flows: recorded once, activated by their target, rolled back, deleted; never changed."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mlp_core.deploy import Deployments, Order, Version
from mlp_core.deploy.targets import PrefixedObjects
from mlp_core.deploy.versions import read_stored
from mlp_core.errors import NameRefused, NotFound, ParameterError, StoreDamaged, UnknownBackend, UsageError
from mlp_core.loading import load_flow
from mlp_core.session import Session
from mlp_core.store.checked import with_checksum

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOW = '''
import itertools
from mlp_core import FlowSpec, Parameter, step

counter = itertools.count()


class Try(FlowSpec):
    """A flow to deploy."""

    limit = 3
    alpha = Parameter("alpha", default=0.5)
    words = Parameter("words", default="a,b", separator=",")
    sizes = Parameter("sizes", type=list[int], default=[1, 2])
    stamp = Parameter("stamp", default=lambda context: f"{context.parameter_name}-{next(counter)}")
    free = Parameter("free", type=str)

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
'''
KEY = "deployments/local/Try/v000001.json"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """An empty project, without installed plugins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("MLP_NO_PLUGINS", "1")
    monkeypatch.setenv("MLP_USERNAME", "alice")
    root = tmp_path / "project"
    root.mkdir()
    (root / "mlp.toml").write_text("[run]\nmax_workers = 2\n")
    monkeypatch.chdir(root)
    return Session.open(start=root)


@pytest.fixture
def flow(session: Session) -> Iterator[type[Any]]:
    """A flow in the project."""
    path = session.root / "deployed_by_test.py"
    path.write_text(FLOW)
    before = list(sys.path)
    yield load_flow(path)
    sys.path[:] = before
    del sys.modules["deployed_by_test"]


@pytest.fixture
def deployments(session: Session) -> Deployments:
    """The deployments of the project's store."""
    return Deployments(session)


def test_a_version_holds_all_that_is_frozen(deployments: Deployments, flow: type[Any], session: Session) -> None:
    """Parameters, code, plugins, settings and the commands that run it are recorded, and the target has accepted it."""
    deployment = deployments.deploy(flow, Order(parameters={"alpha": "0.25"}, tags=("prod", "prod")))
    assert (deployment.target, deployment.name, deployment.version) == ("local", "Try", 1)
    version = deployments.find("Try", "local")
    request = version.request
    assert request.parameters == {"alpha": "0.25", "words": "a,b", "sizes": "[1, 2]", "stamp": "stamp-0"}
    assert [p.default for p in request.plan.parameters] == ["0.25", "a,b", "[1, 2]", "stamp-0", None]
    assert request.tags == ("prod",)
    assert {plugin.name for plugin in request.plugins} >= {"local", "file", "pickle"}
    assert request.code.package is not None
    assert request.code.root == ""
    assert request.plan.graph.flow == "Try"
    assert version.flags["run.max_workers"] == 2
    assert "store" not in version.flags
    assert version.username == "alice"
    blueprint = deployments.blueprint(version)
    assert blueprint.parameters == request.parameters
    assert set(blueprint.constants) == {"limit"}
    store = session.open_store(create=False)
    assert request.run_command[-2:] == ("--store", store.url)
    for command in (request.plan.begin, request.plan.step, request.plan.finish):
        assert store.url in command
    assert read_stored(Version, store.objects, KEY) == version


def test_versions_rise_and_are_never_changed(deployments: Deployments, flow: type[Any], session: Session) -> None:
    """Each deploy is a version of its own; the earlier ones stay byte for byte."""
    deployments.deploy(flow, Order())
    objects = session.open_store(create=False).objects
    first = objects.read(KEY)
    for number in (2, 3):
        assert deployments.deploy(flow, Order(tags=(f"t{number}",))).version == number
    assert objects.read(KEY) == first
    assert [version.request.version for version in deployments.versions("Try", "local")] == [3, 2, 1]
    assert deployments.active_version("Try", "local") == 3
    assert [active.deployment.version for active in deployments.active()] == [3]


def test_deploys_at_once_get_different_versions(deployments: Deployments, flow: type[Any]) -> None:
    """Of several that deploy one name at a time, each gets a number of its own."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: deployments.deploy(flow, Order()).version, range(8)))
    assert sorted(made) == list(range(1, 9))


def test_rollback_goes_back(deployments: Deployments, flow: type[Any]) -> None:
    """Without a number the one before the active one is made active; any other can be named."""
    for _ in range(3):
        deployments.deploy(flow, Order())
    assert deployments.rollback("Try", "local").version == 2
    assert deployments.rollback("Try", "local").version == 1
    assert deployments.active_version("Try", "local") == 1
    with pytest.raises(NotFound, match="no version before 1"):
        deployments.rollback("Try", "local")
    assert deployments.rollback("Try", "local", 3).version == 3
    assert deployments.deploy(flow, Order()).version == 4


def test_delete_takes_out_of_service_and_keeps_versions(deployments: Deployments, flow: type[Any]) -> None:
    """A deleted name is not listed; its versions can be brought back, and its numbers go on."""
    deployments.deploy(flow, Order())
    deployments.delete("Try", "local")
    assert deployments.active() == []
    with pytest.raises(NotFound, match="no active version"):
        deployments.find("Try", "local")
    with pytest.raises(NotFound):
        deployments.delete("Try", "local")
    assert deployments.rollback("Try", "local").version == 1
    assert deployments.deploy(flow, Order()).version == 2


def test_names_are_deployments_of_their_own(deployments: Deployments, flow: type[Any]) -> None:
    """One flow can be deployed under several names."""
    deployments.deploy(flow, Order(name="try-fast"))
    deployments.deploy(flow, Order(name="try.slow"))
    assert [active.deployment.name for active in deployments.active("local")] == ["try-fast", "try.slow"]


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (Order(name="../up"), NameRefused),
        (Order(name="a/b"), NameRefused),
        (Order(name="x" * 200), NameRefused),
        (Order(target="nowhere"), UnknownBackend),
        (Order(target="../x"), NameRefused),
        (Order(tags=("two\nlines",)), NameRefused),
        (Order(parameters={"alpha": "much"}), ParameterError),
        (Order(parameters={"alhpa": "1"}), ParameterError),
        (Order(with_options=("nothing",)), UsageError),
    ],
)
def test_what_is_refused_leaves_nothing(
    deployments: Deployments, flow: type[Any], session: Session, order: Order, error: type[Exception]
) -> None:
    """A bad name, target, tag, parameter or option is refused before any version is recorded."""
    with pytest.raises(error):
        deployments.deploy(flow, order)
    assert list(session.open_store(create=True).objects.list("deployments/")) == []


def test_what_is_not_there_is_told_with_what_is(deployments: Deployments, flow: type[Any]) -> None:
    """Errors name the nearest deployment and the known versions."""
    deployments.deploy(flow, Order())
    with pytest.raises(NotFound) as caught:
        deployments.find("Tri", "local")
    assert caught.value.hint == "did you mean Try?"
    with pytest.raises(NotFound) as caught:
        deployments.find("Try", "local", 7)
    assert caught.value.hint == "it has 1"
    with pytest.raises(NameRefused):
        deployments.find("../Try", "local")


def test_a_trigger_with_an_unknown_parameter_starts_nothing(
    deployments: Deployments, flow: type[Any], session: Session
) -> None:
    """The name is refused before a process is started for it."""
    deployments.deploy(flow, Order())
    with pytest.raises(UsageError, match="no parameter 'alhpa'") as caught:
        deployments.trigger(deployments.find("Try", "local"), {"alhpa": "1"})
    assert caught.value.hint == "did you mean alpha?"
    assert session.open_store(create=False).flows() == []


def test_a_required_parameter_may_be_left_to_the_runs(deployments: Deployments, session: Session) -> None:
    """A required parameter that a deploy does not give stays required for its runs; one that it gives is frozen."""
    path = session.root / "needy_by_test.py"
    path.write_text(FLOW.replace("type=str)", "type=str, required=True)"))
    before = list(sys.path)
    try:
        flow = load_flow(path)
        deployments.deploy(flow, Order())
        deployments.deploy(flow, Order(parameters={"free": "given"}))
    finally:
        sys.path[:] = before
        sys.modules.pop("needy_by_test", None)
    needy, frozen = (deployments.find("Try", "local", number).request for number in (1, 2))
    assert "free" not in needy.parameters
    assert [(p.required, p.default) for p in needy.plan.parameters if p.name == "free"] == [(True, None)]
    assert [(p.required, p.default) for p in frozen.plan.parameters if p.name == "free"] == [(False, "given")]


def test_a_damaged_version_is_told_so(deployments: Deployments, flow: type[Any], session: Session) -> None:
    """Content that is no version, or another one's, is damage."""
    deployments.deploy(flow, Order())
    objects = session.open_store(create=False).objects
    whole = objects.read(KEY)
    objects.replace(KEY, whole[:-20], sync=False)
    with pytest.raises(StoreDamaged, match=r"v000001"):
        deployments.find("Try", "local")
    for content in (whole.replace(b'"name":"Try"', b'"name":"Other"', 1), with_checksum(KEY, b"{}"), b""):
        objects.replace(KEY, content, sync=False)
        with pytest.raises(StoreDamaged):
            deployments.find("Try", "local")
    # A version that lies under another one's key is not that one.
    deployments.deploy(flow, Order())
    objects.replace(KEY, objects.read(KEY.replace("1", "2")), sync=False)
    with pytest.raises(StoreDamaged):
        deployments.find("Try", "local", 1)


def test_missing_plugins_are_found(deployments: Deployments, flow: type[Any]) -> None:
    """What a version was made with and is not here, or not in that version, is told apart."""
    import attrs

    from mlp_hookspecs import PluginId

    deployments.deploy(flow, Order())
    version = deployments.find("Try", "local")
    assert deployments.missing_plugins(version) == ([], [])
    gone = PluginId("gone", "mlp-plugin-gone", "1")
    other = PluginId("local", "mlp-core", "9")
    plugins = (*(p for p in version.request.plugins if p.name != "local"), gone, other)
    changed = attrs.evolve(version, request=attrs.evolve(version.request, plugins=plugins))
    assert deployments.missing_plugins(changed) == ([gone], [other])


def test_a_plan_tells_what_would_change(deployments: Deployments, flow: type[Any]) -> None:
    """A target compares a version with what is active."""
    deployments.deploy(flow, Order())
    first = deployments.find("Try", "local").request
    assert deployments.plan(first).action == "nothing"
    deployments.deploy(flow, Order())
    assert deployments.plan(first).action == "update"
    deployments.delete("Try", "local")
    assert deployments.plan(first).action == "create"


def test_a_targets_objects_are_its_own(session: Session) -> None:
    """What a target writes lies below its prefix, and nothing else is seen by it."""
    inner = session.open_store(create=True).objects
    own = PrefixedObjects(inner, "targets/x/")
    assert own.create("a/b", b"1", sync=False)
    assert not own.create("a/b", b"2", sync=False)
    own.replace("c", b"3", sync=True)
    own.sync(["a/b"])
    assert own.read("a/b") == b"1"
    assert b" 1" in inner.read("targets/x/a/b")
    assert own.children("") == ["a", "c"]
    assert [info.key for info in own.list("a/")] == ["a/b"]
    assert (own.info("c").key, own.info("c").size) == ("c", 1)
    own.delete("c")
    with pytest.raises(FileNotFoundError):
        own.read("c")
    assert own.url == inner.url


def test_a_targets_objects_have_checksums(session: Session, tmp_path: Path) -> None:
    """What a target has stored is what it reads, in ranges and copies too; anything else is damage."""
    inner = session.open_store(create=True).objects
    own = PrefixedObjects(inner, "targets/x/")
    source = own.staging() / "file"
    source.write_bytes(b"0123")
    own.adopt(source, "d", sync=True)
    assert not source.exists()
    assert (own.read("d"), own.read("d", 1), own.read("d", 1, 3)) == (b"0123", b"123", b"12")
    own.download("d", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123"
    assert own.local_path("d") is None
    assert own.open_append("d") is None
    stored = inner.read("targets/x/d")
    for content in (stored[:-1], stored[:-2] + b"?\n", b"", stored + b" "):
        inner.replace("targets/x/d", content, sync=False)
        with pytest.raises(StoreDamaged, match="targets/x/d"):
            own.read("d")
    inner.replace("targets/x/e", stored, sync=False)
    with pytest.raises(StoreDamaged):
        own.read("e")
