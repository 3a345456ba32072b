"""Which variables lead to clouds, and which of them are kept out of logs."""

from __future__ import annotations

import pytest

from cortex.wire.cloud import for_handlers, is_confidential, without_clouds

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "1",
    "AZURE_CLIENT_SECRET": "2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/g.json",
    "IDENTITY_HEADER": "3",
    "HOME": "/home/ann",
    "PATH": "/bin",
}


def test_an_environment_is_parted_into_what_leads_to_clouds_and_the_rest() -> None:
    assert for_handlers(VARIABLES).keys() | without_clouds(VARIABLES).keys() == VARIABLES.keys()
    assert without_clouds(VARIABLES) == {"HOME": "/home/ann", "PATH": "/bin"}


@pytest.mark.parametrize(
    ("name", "confidential"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_SESSION_TOKEN", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("AZURE_STORAGE_SAS_TOKEN", True),
        ("IDENTITY_HEADER", True),
        ("API_PASSPHRASE", True),
        ("AWS_REGION", False),
        ("AWS_PROFILE", False),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", False),
        ("AWS_ENDPOINT_URL", False),
        ("GOOGLE_CLOUD_PROJECT", False),
    ],
)
def test_regions_profiles_and_places_may_be_read_in_a_log(name: str, confidential: bool) -> None:
    assert is_confidential(name) is confidential
