"""
Which credentials a cloud is asked with, for a model or for a cluster's storage: its usual chain, and in words where
they came from.

The order is that of each vendor's own tools: variables first, then profiles and files, then what the machine itself was
given, and at last none at all, which is right for public buckets. Object stores' own client takes most of these from
the environment; what it does not know (AWS profiles, connection strings) is read here.

Source:
    AWS SDKs and Tools Reference Guide, "Standardized credential providers" and "Shared config and credentials files".
    Google Cloud, "How Application Default Credentials works". Azure, "Connection strings" of Azure Storage.
"""

from __future__ import annotations

import configparser
import http.client
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cortex.errors import CortexError
from cortex.spec.problems import nearest

DEFAULT_REGION = "us-east-1"
"""As S3's own tools have it; the bucket's region when the store is not Amazon's."""
PROBE_TIMEOUT_S = 1.0
"""A machine in a cloud answers in milliseconds; elsewhere nothing is at that address."""
PROCESS_TIMEOUT_S = 60.0
"""For a profile's `credential_process`, which may ask a server."""

Config = dict[str, Any]


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How an object store is reached, and as whom."""

    config: Config
    """For `obstore`: on top of what it takes from the environment itself."""
    source: str
    """Where the credentials come from, in words that never tell them."""
    root_certificate: bytes | None = None
    """Further authorities to trust, PEM."""
    allow_http: bool = False

    def __repr__(self) -> str:
        return f"Access(source={self.source!r})"


class CredentialsUnusable(CortexError):
    """What the environment names cannot be used: no such profile, a file that cannot be read, a kind we do not know."""

    reference = "credentials-unusable"

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)


class CredentialSurroundings:
    """
    What the chain looks at.

    Args:
        environ: the deploying shell's variables.
        answers: whether a machine's own service for credentials answers; (host, method, path, headers).
    """

    def __init__(
        self, environ: Mapping[str, str], *, answers: Callable[[str, str, str, dict[str, str]], bool] | None = None
    ) -> None:
        self.environ = {name: value for name, value in environ.items() if value}
        self.answers = _answers if answers is None else answers

    def get(self, *names: str) -> str | None:
        """The first of these variables that is set."""
        return next((self.environ[name] for name in names if name in self.environ), None)

    def is_set(self, name: str) -> bool:
        return self.environ.get(name, "").lower() in ("1", "true", "yes", "on")

    def path(self, text: str) -> Path:
        if text.startswith("~/"):
            return self.home / text[2:]
        return Path(text)

    @property
    def home(self) -> Path:
        return Path(self.environ.get("HOME", "/"))

    def root_certificate(self, *names: str) -> bytes | None:
        file = self.get(*names, "SSL_CERT_FILE")
        if file is None:
            return None
        try:
            return self.path(file).read_bytes()
        except OSError as error:
            raise CredentialsUnusable(f"the certificates in {file} cannot be read ({error.strerror})") from error


def access_to(scheme: str, around: CredentialSurroundings) -> Access:
    """
    Raises:
        CredentialsUnusable: what is named cannot be used; says what to do.
    """
    if scheme == "s3":
        return _s3(around)
    if scheme == "gs":
        return _gs(around)
    if scheme == "az":
        return _az(around)
    return Access(
        config={},
        source="the URL itself",
        root_certificate=around.root_certificate(),
        allow_http=scheme == "http",
    )


# ---- Amazon S3 and what speaks its protocol -----------------------------------------------------------------------


def _s3(around: CredentialSurroundings) -> Access:
    named = around.get("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    profile = _Profile(around, named or "default")
    if named is not None and not profile.exists and around.get("AWS_ACCESS_KEY_ID") is None:
        near = nearest(named, profile.names)
        raise CredentialsUnusable(
            f'there is no profile "{named}" in {profile.files}',
            hint=f"did you mean {near}?" if near else f"profiles there: {', '.join(profile.names) or 'none'}",
        )
    endpoint = around.get("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") or profile.value("endpoint_url")
    region = around.get("AWS_REGION", "AWS_DEFAULT_REGION") or profile.value("region") or DEFAULT_REGION
    allow_http = around.is_set("AWS_ALLOW_HTTP")
    config: Config = {"region": region}
    if endpoint:
        if not endpoint.startswith(("http://", "https://")):
            raise CredentialsUnusable(f"the endpoint {endpoint!r} is no URL", hint="write http://… or https://…")
        if endpoint.startswith("http://") and not allow_http:
            raise CredentialsUnusable(
                f"the endpoint {endpoint} is not encrypted", hint="if that is meant, set AWS_ALLOW_HTTP=true"
            )
        config["endpoint"] = endpoint
    source, keys = _s3_keys(around, profile, named)
    return Access(
        config=config | keys,
        source=source,
        root_certificate=around.root_certificate("AWS_CA_BUNDLE"),
        allow_http=allow_http,
    )


def _s3_keys(around: CredentialSurroundings, profile: _Profile, named: str | None) -> tuple[str, Config]:
    if around.is_set("AWS_SKIP_SIGNATURE"):
        return "none (AWS_SKIP_SIGNATURE is set)", {"skip_signature": True}
    key = around.get("AWS_ACCESS_KEY_ID")
    if key is not None:
        secret = around.get("AWS_SECRET_ACCESS_KEY")
        if secret is None:
            raise CredentialsUnusable("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not", hint="set both")
        found: Config = {"access_key_id": key, "secret_access_key": secret}
        if token := around.get("AWS_SESSION_TOKEN"):
            found["session_token"] = token
        return "environment (AWS_ACCESS_KEY_ID)", found
    if around.get("AWS_WEB_IDENTITY_TOKEN_FILE") and around.get("AWS_ROLE_ARN"):
        return "environment (AWS_WEB_IDENTITY_TOKEN_FILE)", {}
    if found := profile.credentials():
        return f"profile {profile.name}", found
    if profile.exists and named is not None:
        raise CredentialsUnusable(
            f"profile {profile.name} gets its credentials in a way that is not known here ({profile.way})",
            hint=f'run `eval "$(aws configure export-credentials --profile {profile.name} --format env)"`, '
            "then deploy again",
        )
    if around.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return "the container's role", {}
    if not around.is_set("AWS_EC2_METADATA_DISABLED"):
        host = urlsplit(around.get("AWS_METADATA_ENDPOINT") or "").netloc or "169.254.169.254"
        if around.answers(host, "PUT", "/latest/api/token", {"x-aws-ec2-metadata-token-ttl-seconds": "60"}):
            return "the machine's role", {}
    return "none", {"skip_signature": True}


class _Profile:
    """One profile of AWS's shared files."""

    def __init__(self, around: CredentialSurroundings, name: str) -> None:
        self.name = name
        self._around = around
        credentials = around.path(around.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
        config = around.path(around.get("AWS_CONFIG_FILE") or "~/.aws/config")
        self.files = f"{credentials} and {config}"
        secrets, settings = _ini(credentials), _ini(config)
        prefix = "profile "
        self.names = sorted({*secrets, *(section.removeprefix(prefix) for section in settings)})
        # Where both files have something, the file of credentials counts.
        self._values = {
            **settings.get(name if name == "default" else prefix + name, settings.get(prefix + name, {})),
            **secrets.get(name, {}),
        }
        self.exists = name in self.names

    def value(self, key: str) -> str | None:
        return self._values.get(key) or None

    @property
    def way(self) -> str:
        known = ("sso_session", "sso_start_url", "role_arn", "login_session")
        return next((key for key in known if key in self._values), "it has no aws_access_key_id")

    def credentials(self) -> Config:
        """Empty when the profile has none that are known here. Raises CredentialsUnusable."""
        if self.value("role_arn"):
            return {}
        key, secret = self.value("aws_access_key_id"), self.value("aws_secret_access_key")
        if key and secret:
            found: Config = {"access_key_id": key, "secret_access_key": secret}
            if token := self.value("aws_session_token"):
                found["session_token"] = token
            return found
        command = self.value("credential_process")
        return self._of_process(command) if command else {}

    def _of_process(self, command: str) -> Config:
        """What a command of the user's prints. Source: AWS, "Process credential provider"."""
        what = f"`credential_process` of profile {self.name}"
        try:
            # Through a shell, as the AWS tools do: it is the user's own line of their own file.
            done = subprocess.run(
                command,
                shell=True,
                capture_output=True,
                timeout=PROCESS_TIMEOUT_S,
                env=self._around.environ,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise CredentialsUnusable(f"{what} was not done after {PROCESS_TIMEOUT_S:.0f} s") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise CredentialsUnusable(f"{what} failed with exit code {done.returncode}: {said or 'it said nothing'}")
        try:
            given = msgspec.json.decode(done.stdout, type=_Printed)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CredentialsUnusable(f"{what} did not print credentials as JSON") from error
        found: Config = {"access_key_id": given.AccessKeyId, "secret_access_key": given.SecretAccessKey}
        return found | ({"session_token": given.SessionToken} if given.SessionToken else {})


class _Printed(msgspec.Struct):
    AccessKeyId: str
    SecretAccessKey: str
    SessionToken: str | None = None


def _ini(file: Path) -> dict[str, dict[str, str]]:
    """Sections of one of AWS's files; empty when there is none. Never tells what is in it."""
    parser = configparser.RawConfigParser(strict=False, default_section="\0", interpolation=None)
    try:
        parser.read_string(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no file of profiles"
        raise CredentialsUnusable(f"{file} cannot be read: {reason}") from None
    return {section: dict(parser[section]) for section in parser.sections()}


# ---- Google Cloud Storage -------------------------------------------------------------------------------------------


def _gs(around: CredentialSurroundings) -> Access:
    source, config = _gs_keys(around)
    base_url = around.get("GOOGLE_BASE_URL")
    if base_url:
        config["base_url"] = base_url
    return Access(
        config=config,
        source=source,
        root_certificate=around.root_certificate(),
        allow_http=around.is_set("GOOGLE_ALLOW_HTTP"),
    )


def _gs_keys(around: CredentialSurroundings) -> tuple[str, Config]:
    if around.is_set("GOOGLE_SKIP_SIGNATURE"):
        return "none (GOOGLE_SKIP_SIGNATURE is set)", {"skip_signature": True}
    for name in ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN"):
        if around.get(name):
            return f"environment ({name})", {}
    for name in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"):
        if file := around.get(name):
            _check_readable(around.path(file), name)
            return f"environment ({name})", {}
    folder = around.get("CLOUDSDK_CONFIG")
    file_of_user = (
        Path(folder) if folder else around.home / ".config" / "gcloud"
    ) / "application_default_credentials.json"
    if file_of_user.is_file():
        return "application default credentials of gcloud", {"application_credentials": str(file_of_user)}
    host = around.get("GCE_METADATA_HOST") or "metadata.google.internal"
    if around.answers(host, "GET", "/computeMetadata/v1/instance/id", {"metadata-flavor": "Google"}):
        return "the machine's service account", {}
    return "none", {"skip_signature": True}


# ---- Azure Blob Storage ---------------------------------------------------------------------------------------------


def _az(around: CredentialSurroundings) -> Access:
    config = _connection_string(around)
    account = around.get("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT") or config.get("account_name")
    if account:
        config["account_name"] = account
    elif not around.is_set("AZURE_STORAGE_USE_EMULATOR"):
        raise CredentialsUnusable(
            "az:// names a container, but nothing says of which storage account",
            hint="set AZURE_STORAGE_ACCOUNT_NAME",
        )
    source, keys = _az_keys(around, config)
    return Access(
        config=config | keys,
        source=source,
        root_certificate=around.root_certificate(),
        allow_http=around.is_set("AZURE_ALLOW_HTTP"),
    )


def _az_keys(around: CredentialSurroundings, config: Config) -> tuple[str, Config]:
    if around.is_set("AZURE_SKIP_SIGNATURE"):
        return "none (AZURE_SKIP_SIGNATURE is set)", {"skip_signature": True}
    if "account_key" in config or "sas_key" in config:
        return "environment (AZURE_STORAGE_CONNECTION_STRING)", {}
    usual = (
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
        *("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN"),
        *("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"),
    )
    for name in usual:
        if around.get(name):
            return f"environment ({name})", {}
    if key := around.get("AZURE_STORAGE_KEY"):  # the name that Azure's own command line has
        return "environment (AZURE_STORAGE_KEY)", {"account_key": key}
    if around.is_set("AZURE_STORAGE_USE_EMULATOR"):
        return "the emulator's own", {}
    if around.is_set("AZURE_USE_AZURE_CLI"):
        return "the Azure CLI's login", {}
    path = "/metadata/instance?api-version=2021-02-01"
    if around.get("IDENTITY_ENDPOINT") or around.answers("169.254.169.254", "GET", path, {"metadata": "true"}):
        return "the machine's managed identity", {}
    return "none", {"skip_signature": True}


def _connection_string(around: CredentialSurroundings) -> Config:
    text = around.get("AZURE_STORAGE_CONNECTION_STRING")
    if text is None:
        return {}
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {
        "AccountName": "account_name",
        "AccountKey": "account_key",
        "SharedAccessSignature": "sas_key",
        "BlobEndpoint": "endpoint",
    }
    return {ours: parts[theirs] for theirs, ours in names.items() if parts.get(theirs)}


def _check_readable(file: Path, variable: str) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise CredentialsUnusable(f"{variable} names {file}, which cannot be read ({error.strerror})") from error


def _answers(host: str, method: str, path: str, headers: dict[str, str]) -> bool:
    """Whether a service for machines' credentials is there. Never through a proxy: it is on this machine's own link."""
    name, _, port = host.partition(":")
    connection = http.client.HTTPConnection(name, int(port or 80), timeout=PROBE_TIMEOUT_S)
    try:
        connection.request(method, path, headers=headers)
        return connection.getresponse().status == 200
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
