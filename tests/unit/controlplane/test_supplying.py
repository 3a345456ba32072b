"""Tests of `cortex.controlplane.supplying`: which node is given what."""

import logging
import threading
from pathlib import Path

import msgspec
import pytest

from cortex.artifacts import samples
from cortex.artifacts.errors import ArtifactMissing
from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.supplying import Needed, NotNeededThere, Supplying, UnderWay, allowance_of
from cortex.engines.ledger import Ledger
from cortex.ids import NodeId, replica_id
from cortex.planning.model import LeaseRequest
from cortex.state.records import StateStore
from cortex.state.secrets import SecretStore
from cortex.testing.builders import a_build, a_deploy, a_digest, a_node, a_wanted_api
from cortex.wire.build import BuildSpec, SecretPin
from cortex.wire.needs import FetchBlob, FetchIndexes, FetchSecrets, FetchTree, PackageIndexes, SecretValues

N1, N2 = NodeId("n1"), NodeId("n2")


class World:
    """Two nodes; one build, which has room on the first."""

    def __init__(self, folder: Path) -> None:
        self.state = StateStore()
        self.engine = Ledger([a_node(N1)])
        self.store = ArtifactStore(folder / "artifacts")
        self.secrets, self.cloud = SecretStore(folder / "secrets"), SecretStore(folder / "cloud")
        self.under_way = UnderWay()
        self.is_settled = True
        self.looks = 0
        self.supplying = Supplying(
            store=self.store,
            secrets=self.secrets,
            cloud=self.cloud,
            indexes=lambda: {"UV_INDEX_URL": "https://a"},
            needed=Needed(
                state=self.state,
                engine=self.engine,
                under_way=self.under_way,
                settled=self.settled,
                stopping=threading.Event(),
            ),
        )

    def settled(self) -> bool:
        self.looks += 1
        return self.is_settled

    def build(self, label: str = "v1", **fields: object) -> BuildSpec:
        build = a_build(label)
        model = msgspec.structs.replace(build.model, tree=samples.put_body(self.store, label.encode()), entry="body")
        return msgspec.structs.replace(build, model=model, **fields)

    def pin(self, name: str, value: str) -> SecretPin:
        return SecretPin(name=name, generation=self.secrets.set(name, value, wall_s=0.0).generation)

    def deploy(self, build: BuildSpec) -> BuildSpec:
        self.state.commit_deploy(a_deploy(a_wanted_api(build)))
        return build

    def lease(self, build: BuildSpec) -> None:
        replica = replica_id(build.api, build.revision, 0)
        self.engine.acquire(LeaseRequest(replica=replica, api=build.api, resources=build.resources))
        assert [lease.node for lease in self.engine.leases()] == [N1]

    def bytes_of(self, build: BuildSpec, node: NodeId) -> bytes:
        assert build.model is not None
        listing = self.supplying.tree(FetchTree(tree=build.model.tree), node)
        need = FetchBlob(tree=build.model.tree, sha256=listing.files[0].sha256)
        return b"".join(self.supplying.blob(need, node))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_node_gets_the_files_of_what_has_room_there(world: World) -> None:
    build = world.deploy(world.build())
    with pytest.raises(NotNeededThere):
        world.bytes_of(build, N1)
    world.lease(build)
    assert world.bytes_of(build, N1) == b"v1"
    with pytest.raises(NotNeededThere):
        world.bytes_of(build, N2)


def test_sizes_and_offsets_are_in_bytes(world: World) -> None:
    build = world.deploy(world.build())
    world.lease(build)
    tree = build.model.tree
    listing = world.supplying.tree(FetchTree(tree=tree), N1)
    assert (len(listing.files), listing.sizes_bytes) == (1, (2,))
    need = FetchBlob(tree=tree, sha256=listing.files[0].sha256, offset=1)
    assert b"".join(world.supplying.blob(need, N1)) == b"1"


def test_what_is_looked_at_is_given_before_it_is_stored_and_not_after(world: World) -> None:
    build = world.build()
    with world.under_way.needs(allowance_of([build])), world.under_way.needs(allowance_of([build])):
        assert world.bytes_of(build, N2) == b"v1"
    with pytest.raises(NotNeededThere):
        world.bytes_of(build, N2)


def test_a_file_is_given_only_as_part_of_a_folder_that_has_it(world: World) -> None:
    mine, other = world.deploy(world.build()), world.build("v2")
    world.lease(mine)
    foreign = world.store.listing(other.model.tree)
    need = FetchBlob(tree=mine.model.tree, sha256=next(iter(foreign)).sha256)
    with pytest.raises(NotNeededThere):
        world.supplying.blob(need, N1)


def test_a_folder_that_is_gone_is_named(world: World) -> None:
    build = world.deploy(a_build())
    world.lease(build)
    with pytest.raises(ArtifactMissing):
        world.supplying.tree(FetchTree(tree=build.model.tree), N1)


def test_a_secret_goes_to_whom_a_build_there_is_pinned_to_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    mine, foreign = world.pin("token", "hunter22"), world.pin("other", "sesame99")
    build = world.deploy(world.build(secrets={"TOKEN": mine}))
    world.lease(build)
    assert world.supplying.values(FetchSecrets(pins={"X": mine}), N1) == SecretValues(values={"X": "hunter22"})
    with caplog.at_level(logging.WARNING):
        for node, pins in ((N2, {"X": mine}), (N1, {"X": mine, "Y": foreign})):
            with pytest.raises(NotNeededThere):
                world.supplying.values(FetchSecrets(pins=pins), node)
    assert 'node n2 asked for the secret "token"' in caplog.text
    assert 'node n1 asked for the secret "other"' in caplog.text
    for value in ("hunter22", "sesame99"):
        assert value not in caplog.text


def test_a_value_that_a_build_is_not_pinned_to_is_refused(world: World) -> None:
    old = world.pin("token", "old")
    world.lease(world.deploy(world.build(secrets={"TOKEN": world.pin("token", "new")})))
    with pytest.raises(NotNeededThere):
        world.supplying.values(FetchSecrets(pins={"TOKEN": old}), N1)


def test_keys_to_clouds_are_no_secrets_of_users(world: World) -> None:
    pin = world.pin("token", "hunter22")
    world.lease(world.deploy(world.build(secrets={"TOKEN": pin})))
    with pytest.raises(NotNeededThere):
        world.supplying.values(FetchSecrets(pins={}, cloud=pin), N1)


def test_indexes_go_to_whom_packages_are_installed_for(world: World) -> None:
    world.lease(world.deploy(world.build()))
    with pytest.raises(NotNeededThere):
        world.supplying.indexes(FetchIndexes(), N1)
    with world.under_way.needs(allowance_of([world.build("v2", packages=a_digest("lock"))])):
        found = world.supplying.indexes(FetchIndexes(), N1)
    assert found == PackageIndexes(variables={"UV_INDEX_URL": "https://a"})


def test_just_after_our_start_it_is_waited_until_it_is_known_what_has_room(world: World) -> None:
    build = world.deploy(world.build())
    world.is_settled = False

    def settled() -> bool:
        world.looks += 1
        if world.looks == 3:
            world.lease(build)
            world.is_settled = True
        return world.is_settled

    world.settled = settled  # type: ignore[method-assign]
    world.supplying = Supplying(
        store=world.store,
        secrets=world.secrets,
        cloud=world.cloud,
        indexes=lambda: None,
        needed=Needed(
            state=world.state,
            engine=world.engine,
            under_way=world.under_way,
            settled=settled,
            stopping=threading.Event(),
        ),
    )
    assert world.bytes_of(build, N1) == b"v1"
