"""Which ports an environment gets."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Collection
from pathlib import Path

import pytest

from cortex.client.ports import (
    Holder,
    NoFreePort,
    Ports,
    PortTaken,
    RememberedPorts,
    UnusableAddress,
    belongs_to,
    bound,
    choose,
    holder,
    read_remembered,
    remember,
)
from cortex.settings import Settings, WrongSetting, load_settings

SOMEBODY = Holder(pid=123, name="python3", command="python3 -m http.server 8880")


def settings(**environ: str) -> Settings:
    return load_settings({"CORTEX_HOME": "/home/me/.cortex", **environ})


def chosen(
    wanted: Settings,
    *,
    taken: Collection[int] = (),
    ours: bool = False,
    remembered: RememberedPorts | None = None,
) -> tuple[Ports, list[str]]:
    said: list[str] = []
    ports = choose(
        wanted,
        remembered or RememberedPorts(),
        take=lambda _host, port: port not in taken,
        holder=lambda port: SOMEBODY if port in taken else None,
        is_ours=lambda _holder: ours,
        say=said.append,
    )
    return ports, said


def test_free_defaults_are_taken_without_a_word() -> None:
    assert chosen(settings()) == (Ports(port=8880, operator_port=8881), [])


def test_a_default_that_is_taken_moves_to_the_next_free_one_and_says_so() -> None:
    ports, said = chosen(settings(), taken={8880, 8882})
    assert ports == Ports(port=8883, operator_port=8881)
    assert said == [
        "port 8880 is taken by python3 (pid 123: python3 -m http.server 8880): the prediction APIs use 8883 from now on"
    ]


def test_the_control_plane_moves_too() -> None:
    ports, said = chosen(settings(), taken={8881})
    assert ports == Ports(port=8880, operator_port=8882)
    assert said[0].endswith("the control plane uses 8882 from now on")


def test_the_ingress_does_not_take_the_port_of_the_control_plane() -> None:
    assert chosen(settings(), taken={8880})[0] == Ports(port=8882, operator_port=8881)


def test_a_given_ingress_port_makes_the_control_plane_move() -> None:
    assert chosen(settings(CORTEX_PORT="8881"))[0] == Ports(port=8881, operator_port=8882)


def test_a_given_port_that_is_taken_is_an_error_naming_who_has_it() -> None:
    with pytest.raises(PortTaken) as caught:
        chosen(settings(CORTEX_PORT="9000"), taken={9000})
    assert str(caught.value) == (
        "port 9000 (port of the prediction APIs) is taken by python3 (pid 123: python3 -m http.server 8880)"
    )
    assert "CORTEX_PORT" in caught.value.hint


def test_a_given_port_that_an_unseen_process_has_is_an_error() -> None:
    error = PortTaken("operator_port", 9000, None)
    assert "another user" in str(error)


def test_a_port_that_is_let_go_while_its_holder_is_looked_for_is_taken() -> None:
    """A control plane that was killed holds its port for a moment longer than it is there."""
    tries: list[int] = []

    def take(_host: str, port: int) -> bool:
        tries.append(port)
        return port != 9001 or tries.count(9001) > 1

    ports = choose(
        settings(CORTEX_PORT="9000", CORTEX_OPERATOR_PORT="9001"),
        RememberedPorts(),
        take=take,
        holder=lambda _port: None,
        is_ours=lambda _holder: False,
        say=lambda _sentence: None,
    )
    assert ports == Ports(port=9000, operator_port=9001)


def test_the_same_port_twice_is_an_error() -> None:
    with pytest.raises(WrongSetting):
        chosen(settings(CORTEX_PORT="9000", CORTEX_OPERATOR_PORT="9000"))


def test_a_port_that_our_own_ingress_still_holds_is_not_taken() -> None:
    assert chosen(settings(CORTEX_PORT="9000"), taken={9000}, ours=True)[0].port == 9000
    assert chosen(settings(), taken={8880}, ours=True) == (Ports(port=8880, operator_port=8881), [])


def test_a_remembered_port_is_kept_even_if_the_default_is_free_again() -> None:
    remembered = RememberedPorts(port=8885, operator_port=8886)
    assert chosen(settings(), remembered=remembered) == (Ports(port=8885, operator_port=8886), [])


def test_a_given_port_beats_a_remembered_one() -> None:
    remembered = RememberedPorts(port=8885)
    assert chosen(settings(CORTEX_PORT="9000"), remembered=remembered)[0].port == 9000


def test_a_remembered_port_that_is_taken_gives_way() -> None:
    assert chosen(settings(), taken={8885}, remembered=RememberedPorts(port=8885))[0].port == 8880


def test_no_port_at_all_is_an_error() -> None:
    with pytest.raises(NoFreePort):
        chosen(settings(), taken=range(8000, 10000))


def test_only_moved_ports_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    remember(file, settings(), Ports(port=8880, operator_port=8883))
    assert read_remembered(file) == RememberedPorts(operator_port=8883)
    remember(file, settings(CORTEX_OPERATOR_PORT="8883"), Ports(port=8880, operator_port=8883))
    assert not file.exists()
    file.write_text("not json")
    assert read_remembered(file) == RememberedPorts()


def test_a_listening_port_is_not_free_and_its_holder_is_seen() -> None:
    with socket.socket() as reserved:
        # Bound so, it keeps others from being given the port, and nobody from listening on it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with socket.create_server(("127.0.0.1", port)):
            assert bound("127.0.0.1", port) is None
            found = holder(port)
        assert found is not None
        assert found.pid == os.getpid()
        assert holder(port) is None
        with bound("127.0.0.1", port):
            assert holder(port).pid == os.getpid(), "from now on it is ours"


def test_a_port_taken_on_all_addresses_is_not_free_on_one() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert bound("127.0.0.1", server.getsockname()[1]) is None


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(UnusableAddress):
        bound("192.0.2.1", 0)


def test_processes_of_this_home_are_recognised_by_their_command_line() -> None:
    home = Path("/home/me/.cortex")
    assert belongs_to(home, Holder(pid=1, name="x", command="cortex-replica /home/me/.cortex iris/sklearn"))
    assert belongs_to(home, Holder(pid=1, name="haproxy", command="haproxy -f /home/me/.cortex/node/haproxy.cfg"))
    assert not belongs_to(home, Holder(pid=1, name="x", command="cortex-replica /home/me/.cortex-2 iris/sklearn"))
    assert not belongs_to(home, Holder(pid=1, name="x", command="vi /etc/hosts"))


def test_long_command_lines_are_cut() -> None:
    assert str(Holder(pid=1, name="x", command="x" * 100)).endswith("…)")
    assert str(Holder(pid=1, name="x", command="x /home    ")) == "x (pid 1: x /home)", "titles are filled up"


@pytest.mark.parametrize(
    ("command", "home"),
    [
        ("cortex-controlplane /home/me/.cortex      ", "/home/me/.cortex"),
        ("/usr/sbin/haproxy -W -C /home/me/my home/ingress -f door-1.cfg", "/home/me/my home"),
    ],
)
def test_a_port_that_another_home_has_is_told_so_and_nobody_is_to_end_its_processes(command: str, home: str) -> None:
    error = PortTaken("port", 8880, Holder(pid=7, name="x", command=command))
    assert str(error) == f"port 8880 (port of the prediction APIs) is taken by the Cortex of another home, {home}"
    assert error.hint == (
        f"set another port (--port or CORTEX_PORT); or stop that one: CORTEX_HOME={shlex.quote(home)} cortex down"
    )
    assert PortTaken("port", 8880, SOMEBODY).hint == "end it, or set another port (--port or CORTEX_PORT)"
