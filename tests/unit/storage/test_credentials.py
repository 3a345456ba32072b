"""Tests of `cortex.storage.credentials`: which credentials are taken, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.artifacts.fetching import cloud_variables
from cortex.storage.credentials import Access, CredentialsUnusable, CredentialSurroundings, access_to

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "the-secret"}
AZURE = {"AZURE_STORAGE_ACCOUNT_NAME": "ours"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    return tmp_path


def access(scheme: str, home: Path, *, machine: bool = False, **variables: str) -> Access:
    """What a shell with these variables gets; `machine`: one that was given a role."""
    around = CredentialSurroundings(
        {"HOME": str(home), **variables}, answers=lambda host, method, path, headers: machine
    )
    return access_to(scheme, around)


def unusable(scheme: str, home: Path, **variables: str) -> str:
    with pytest.raises(CredentialsUnusable) as caught:
        access(scheme, home, **variables)
    assert "the-secret" not in f"{caught.value} {caught.value.hint}"
    return f"{caught.value}\n{caught.value.hint}"


def write(home: Path, name: str, text: str) -> None:
    (home / ".aws" / name).write_text(text)


# ---- S3 ---------------------------------------------------------------------------------------------------------


def test_variables_come_before_profiles(home: Path) -> None:
    write(home, "credentials", "[default]\naws_access_key_id = other\naws_secret_access_key = other\n")
    found = access("s3", home, **KEYS, AWS_SESSION_TOKEN="token")
    assert found.source == "environment (AWS_ACCESS_KEY_ID)"
    assert found.config == {
        "region": "us-east-1",
        "access_key_id": "AKID",
        "secret_access_key": "the-secret",
        "session_token": "token",
    }


def test_a_profile_is_read_from_both_files(home: Path) -> None:
    write(home, "credentials", "[team]\naws_access_key_id = AKID\naws_secret_access_key = the-secret\n")
    write(home, "config", "[profile team]\nregion = eu-west-1\nendpoint_url = https://store.example\n")
    found = access("s3", home, AWS_PROFILE="team")
    assert found.source == "profile team"
    assert found.config == {
        "region": "eu-west-1",
        "endpoint": "https://store.example",
        "access_key_id": "AKID",
        "secret_access_key": "the-secret",
    }


def test_the_default_profile_needs_no_variable(home: Path) -> None:
    write(home, "credentials", "[default]\naws_access_key_id = AKID\naws_secret_access_key = the-secret\n")
    assert access("s3", home).source == "profile default"


def test_files_of_profiles_may_lie_elsewhere(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.write_text("[default]\naws_access_key_id = AKID\naws_secret_access_key = the-secret\n")
    assert access("s3", home, AWS_SHARED_CREDENTIALS_FILE=str(elsewhere)).config["access_key_id"] == "AKID"


def test_a_profile_that_is_not_there_suggests_one(home: Path) -> None:
    write(home, "config", "[profile production]\nregion = eu-west-1\n")
    words = unusable("s3", home, AWS_PROFILE="prodution")
    assert words.startswith('there is no profile "prodution" in ')
    assert words.endswith("did you mean production?")


def test_a_credential_process_is_run(home: Path) -> None:
    command = """echo '{"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "the-secret", "SessionToken": "t"}'"""
    write(home, "config", f"[profile team]\ncredential_process = {command}\n")
    found = access("s3", home, AWS_PROFILE="team", PATH="/usr/bin:/bin")
    assert (found.source, found.config["session_token"]) == ("profile team", "t")


def test_a_credential_process_that_fails_is_quoted(home: Path) -> None:
    write(home, "config", "[profile team]\ncredential_process = echo not logged in >&2; exit 3\n")
    words = unusable("s3", home, AWS_PROFILE="team", PATH="/usr/bin:/bin")
    assert "failed with exit code 3: not logged in" in words


@pytest.mark.parametrize("way", ["sso_session = corp", "role_arn = arn:aws:iam::1:role/x\nsource_profile = default"])
def test_what_is_not_known_here_has_a_line_to_paste(home: Path, way: str) -> None:
    write(home, "config", f"[profile team]\n{way}\n")
    words = unusable("s3", home, AWS_PROFILE="team")
    assert 'eval "$(aws configure export-credentials --profile team --format env)"' in words


def test_half_of_a_key_is_noticed(home: Path) -> None:
    assert "AWS_SECRET_ACCESS_KEY is not" in unusable("s3", home, AWS_ACCESS_KEY_ID="AKID")


def test_a_file_that_is_none_is_named_and_not_quoted(home: Path) -> None:
    write(home, "credentials", "aws_secret_access_key = the-secret\n")
    assert "it is no file of profiles" in unusable("s3", home)


@pytest.mark.parametrize(
    ("variables", "machine", "source"),
    [
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn"},
            False,
            "environment (AWS_WEB_IDENTITY_TOKEN_FILE)",
        ),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"}, False, "the container's role"),
        ({}, True, "the machine's role"),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, True, "none"),
        ({}, False, "none"),
        ({**KEYS, "AWS_SKIP_SIGNATURE": "true"}, False, "none (AWS_SKIP_SIGNATURE is set)"),
    ],
)
def test_the_rest_of_the_chain(home: Path, variables: dict[str, str], machine: bool, source: str) -> None:
    found = access("s3", home, machine=machine, **variables)
    assert (found.source, "skip_signature" in found.config) == (source, source.startswith("none"))


def test_the_endpoint_of_s3_comes_before_that_of_all_services(home: Path) -> None:
    found = access("s3", home, AWS_ENDPOINT_URL="https://all.example", AWS_ENDPOINT_URL_S3="https://s3.example")
    assert found.config["endpoint"] == "https://s3.example"


def test_an_endpoint_without_encryption_has_to_be_meant(home: Path) -> None:
    assert "AWS_ALLOW_HTTP=true" in unusable("s3", home, AWS_ENDPOINT_URL="http://store.example")
    assert access("s3", home, AWS_ENDPOINT_URL="http://store.example", AWS_ALLOW_HTTP="true").allow_http


def test_an_authority_of_ones_own_is_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"PEM")
    assert access("s3", home, AWS_CA_BUNDLE=str(tmp_path / "ca.pem")).root_certificate == b"PEM"
    assert "cannot be read" in unusable("s3", home, SSL_CERT_FILE=str(tmp_path / "none.pem"))


def test_what_is_known_of_an_access_is_never_printed_with_its_keys(home: Path) -> None:
    assert "the-secret" not in repr(access("s3", home, **KEYS))


# ---- Google and Azure -------------------------------------------------------------------------------------------


def test_google_credentials_in_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "account.json").write_text("{}")
    file = str(tmp_path / "account.json")
    assert (
        access("gs", home, GOOGLE_APPLICATION_CREDENTIALS=file).source == "environment (GOOGLE_APPLICATION_CREDENTIALS)"
    )
    assert "cannot be read" in unusable("gs", home, GOOGLE_APPLICATION_CREDENTIALS=file + ".not")


def test_google_credentials_of_the_user(home: Path) -> None:
    folder = home / ".config" / "gcloud"
    folder.mkdir(parents=True)
    (folder / "application_default_credentials.json").write_text("{}")
    assert access("gs", home).source == "application default credentials of gcloud"


def test_google_without_any(home: Path) -> None:
    assert access("gs", home, machine=True).source == "the machine's service account"
    assert "skip_signature" in access("gs", home).config


def test_azure_needs_to_know_the_account(home: Path) -> None:
    assert "set AZURE_STORAGE_ACCOUNT_NAME" in unusable("az", home)


@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({"AZURE_STORAGE_ACCOUNT_KEY": "the-secret"}, "environment (AZURE_STORAGE_ACCOUNT_KEY)"),
        ({"AZURE_STORAGE_SAS_TOKEN": "the-secret"}, "environment (AZURE_STORAGE_SAS_TOKEN)"),
        ({"AZURE_STORAGE_KEY": "the-secret"}, "environment (AZURE_STORAGE_KEY)"),
        ({"AZURE_USE_AZURE_CLI": "true"}, "the Azure CLI's login"),
        ({}, "none"),
    ],
)
def test_azure_credentials(home: Path, variables: dict[str, str], source: str) -> None:
    assert access("az", home, **AZURE, **variables).source == source


def test_an_azure_connection_string_is_taken_apart(home: Path) -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=ours;AccountKey=the-secret==;EndpointSuffix=core.windows.net"
    found = access("az", home, AZURE_STORAGE_CONNECTION_STRING=text)
    assert found.config == {"account_name": "ours", "account_key": "the-secret=="}
    assert found.source == "environment (AZURE_STORAGE_CONNECTION_STRING)"


# ---- what a shell hands over ------------------------------------------------------------------------------------


def test_a_shell_hands_over_what_leads_to_clouds_and_nothing_else() -> None:
    shell = {
        "AWS_PROFILE": "team",
        "AWS_CONFIG_FILE": "conf/aws",
        "GOOGLE_APPLICATION_CREDENTIALS": "/keys/g.json",
        "AZURE_CLIENT_ID": "id",
        "HTTPS_PROXY": "http://proxy",
        "HOME": "/home/ann",
        "PATH": "/bin",
        "GITHUB_TOKEN": "x",
        "AWS_REGION": "",
    }
    assert cloud_variables(shell, "/srv/here") == {
        "AWS_PROFILE": "team",
        "AWS_CONFIG_FILE": "/srv/here/conf/aws",
        "GOOGLE_APPLICATION_CREDENTIALS": "/keys/g.json",
        "AZURE_CLIENT_ID": "id",
        "HTTPS_PROXY": "http://proxy",
        "HOME": "/home/ann",
    }
