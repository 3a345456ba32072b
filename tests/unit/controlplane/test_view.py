"""Tests of `cortex.controlplane.view`."""

import asyncio

import pytest

from cortex.controlplane.view import View, door_url
from cortex.wire.operator import ApiStatus, Status
from cortex.wire.reports import IngressReport


def a_status(name="a", status=Status.LIVE, deployment="iris"):
    return ApiStatus(
        deployment=deployment, name=name, status=status, endpoint="http://x", version="12345678", last_updated=None
    )


def test_a_watcher_with_an_old_token_is_answered_at_once():
    view = View()
    view.publish((a_status(),))
    seen = asyncio.run(view.changed("", 60))
    assert seen.apis == (a_status(),)


def test_a_watcher_waits_for_a_change_and_hears_of_it():
    async def scenario():
        view = View()
        view.publish((a_status(status=Status.CREATING),))
        token = view.now().token
        watching = asyncio.create_task(view.changed(token, 3600))
        await asyncio.sleep(0)
        assert not watching.done()
        await asyncio.to_thread(view.publish, (a_status(),))
        return await asyncio.wait_for(watching, 60)

    assert asyncio.run(scenario()).apis == (a_status(),)


def test_the_same_again_wakes_nobody():
    view = View()
    view.publish((a_status(),))
    token = view.now().token
    view.publish((a_status(),))
    assert view.now().token == token


def test_a_watcher_is_answered_when_the_time_is_up():
    view = View()
    token = view.now().token
    assert asyncio.run(view.changed(token, 0)).token == token


def test_statuses_are_sorted_and_kept_apart_by_deployment():
    view = View()
    b, a, other = a_status("b"), a_status("a"), a_status("a", deployment="zoo")
    view.publish((other, b, a))
    assert view.statuses() == (a, b, other)
    assert view.statuses("iris") == (a, b)
    assert view.status("zoo", "a") == other
    assert view.status("zoo", "b") is None


@pytest.mark.parametrize(
    ("bound", "told", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:80"),
        ("0.0.0.0", "", "http://127.0.0.1:80"),
        ("::", "", "http://[::1]:80"),
        ("0.0.0.0", "10.0.0.2", "http://10.0.0.2:80"),
        ("10.1.0.2", "10.0.0.2", "http://10.1.0.2:80"),
    ],
)
def test_a_door_is_found_where_it_is_bound_or_else_where_other_nodes_find_it(bound, told, url):
    assert door_url(IngressReport(up=True, host=bound, port=80, peer_host=told, peer_port=81)) == url
