"""Tests of `cortex.wire.link`."""

import msgspec
import pytest

from cortex.ids import NodeId
from cortex.wire.link import NEEDS, ORDERS, Hello, misfit


@pytest.mark.parametrize(("protocol", "fits"), [(6, False), (7, True), (8, True), (9, False)])
def test_an_agent_of_this_protocol_or_of_the_one_before_is_taken(protocol, fits):
    hello = Hello(node=NodeId("n1"), agent="a", way=NEEDS, version="0.7.1", protocol=protocol)
    assert (misfit(hello, protocol=8, version="0.8.0") is None) == fits


def test_an_agent_that_does_not_fit_is_told_both_versions():
    hello = Hello(node=NodeId("n1"), agent="a", way=ORDERS, version="0.6.2", protocol=6)
    assert misfit(hello, protocol=8, version="0.8.0") == (
        "node n1 has Cortex 0.6.2 (protocol 6), and its control plane Cortex 0.8.0, which takes protocol 7 or 8: "
        "install the same version on both"
    )


def test_what_a_later_version_says_besides_is_passed_over():
    later = b'{"type":"hello","node":"n1","agent":"a","way":"songs","version":"9","protocol":99,"mood":"fine"}'
    assert msgspec.json.decode(later, type=Hello).way == "songs"
