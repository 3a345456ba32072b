"""The handlers' logger outside a replica; inside one it is tested with the log file."""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import Iterator

import pytest

from cortex.lib.log import get_logger


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    def forget() -> None:
        logger = logging.getLogger("cortex")
        for handler in tuple(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True

    forget()
    yield
    forget()


def test_it_writes_to_stdout_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_logger() is get_logger()
    get_logger().handlers[0].setStream(sys.stdout)  # type: ignore[attr-defined]
    get_logger().info("hello %s", "there")
    assert capsys.readouterr().out.endswith(":cortex:INFO:hello there\n")


def test_configuring_other_loggers_does_not_disable_it() -> None:
    logger = get_logger()
    root = logging.getLogger()
    before = (tuple(root.handlers), root.level)
    existing = [found for found in logging.Logger.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    enabled = [found for found in existing if not found.disabled]
    try:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True, "incremental": False})
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours_disabled = logger.disabled
        for found in enabled:
            found.disabled = False  # other tests read what these write
    assert not ours_disabled
    assert logger.isEnabledFor(logging.DEBUG)
