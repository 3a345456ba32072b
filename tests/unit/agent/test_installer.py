"""Tests of `cortex.agent.installer`; a script stands for uv."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from cortex.agent.installer import Installer, InstallerFailed, installer_variables

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@pytest.fixture
def uv(tmp_path: Path):
    def make(code: str = SHOW) -> str:
        script = tmp_path / "uv"
        script.write_text(f"#!{sys.executable}\n{code}\n")
        script.chmod(0o755)
        return str(script)

    return make


def run(installer: Installer, *arguments: str, told: list[str] | None = None) -> str:
    tell = (lambda words: None) if told is None else told.append
    return asyncio.run(installer.uv(arguments, cwd=Path("/"), timeout_s=100, tell=tell, doing="resolving"))


def test_an_installer_sees_where_packages_and_compilers_are_and_no_credentials_of_others():
    environ = {
        "PATH": "/bin",
        "CC": "clang",
        "LC_ALL": "C",
        "UV_INDEX_URL": "https://a",
        "AWS_SECRET_ACCESS_KEY": "no",
        "CORTEX_HOME": "/x",
        "PYTHONPATH": "/y",
    }
    got = installer_variables(environ)
    assert got["PATH"] == "/bin"
    assert (got["CC"], got["LC_ALL"], got["UV_INDEX_URL"]) == ("clang", "C", "https://a")
    assert not got.keys() & {"AWS_SECRET_ACCESS_KEY", "CORTEX_HOME", "PYTHONPATH"}


def test_what_was_set_for_pip_counts_unless_uv_has_its_own():
    pip = {"PIP_INDEX_URL": "https://p", "PIP_CERT": "/ca.pem"}
    assert installer_variables(pip)["UV_INDEX_URL"] == "https://p"
    assert installer_variables(pip)["SSL_CERT_FILE"] == "/ca.pem"
    assert installer_variables({**pip, "UV_INDEX_URL": "https://u"})["UV_INDEX_URL"] == "https://u"
    assert "PIP_INDEX_URL" not in installer_variables(pip)


def test_the_last_deploys_shell_says_where_packages_come_from(uv):
    handed_over = {"UV_INDEX_URL": "https://first"}

    async def asked(_tell):
        return handed_over

    installer = Installer({"UV_INDEX_URL": "https://own"}, handed_over=asked, find=uv)
    assert json.loads(run(installer, "pip"))[1]["UV_INDEX_URL"] == "https://first"
    handed_over = {"PIP_INDEX_URL": "https://second"}
    assert json.loads(run(installer, "pip"))[1]["UV_INDEX_URL"] == "https://second"
    handed_over = {}
    assert "UV_INDEX_URL" not in json.loads(run(installer, "pip"))[1]


def test_options_are_joined_with_variables_and_kept_off_the_command_line(uv):
    environ = {"UV_EXTRA_INDEX_URL": "https://me:password@b/simple", "UV_FIND_LINKS": "/links"}
    installer = Installer(environ, find=uv)
    given = ("pip", "--extra-index-url", "https://a/simple", "--find-links", "/mine", "--quiet")
    arguments, variables = json.loads(run(installer, *given))
    assert arguments == ["pip", "--quiet"]
    assert variables["UV_EXTRA_INDEX_URL"] == "https://a/simple https://me:****@b/simple", "and masked as it is shown"
    assert variables["UV_FIND_LINKS"] == "/mine,/links"


def test_passwords_are_masked_in_what_an_installer_says(uv, caplog):
    handed_over = {"UV_INDEX_URL": "https://me:hunter22@a/simple", "UV_INDEX_INTERN_PASSWORD": "sesame99"}
    code = (
        "print('Downloading x (hunter22)')\n"
        "print('failed: https://me:hunter22@a/simple with sesame99')\n"
        "raise SystemExit(2)"
    )
    told: list[str] = []

    async def asked(_tell):
        return handed_over

    with pytest.raises(InstallerFailed) as failed:
        run(Installer({}, handed_over=asked, find=lambda: uv(code)), "pip", told=told)
    for said in (failed.value.output, caplog.text, *told):
        assert "hunter22" not in said
        assert "sesame99" not in said
    assert "resolving: Downloading x (****)" in told


def test_a_program_that_is_not_the_installer_sees_no_index(uv):
    installer = Installer({"UV_INDEX_URL": "https://me:pw@a", "PATH": "/bin"}, find=uv)
    output = asyncio.run(installer.run([uv()], cwd=Path("/"), timeout_s=100, tell=lambda _: None, doing="trying"))
    assert not [name for name in json.loads(output)[1] if name.startswith("UV_INDEX")]
