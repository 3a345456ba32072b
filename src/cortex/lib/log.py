"""
The handlers' logger.

    from cortex.lib.log import get_logger
    logger = get_logger()

Its lines appear in `cortex logs` with the id of the request that caused them.
"""

from __future__ import annotations

import logging
import sys

NAME = "cortex"
FORMAT = "%(asctime)s:%(name)s:%(levelname)s:%(message)s"
"""Used outside a replica only, e.g. in a test of a handler: a replica records the parts by themselves."""


class SteadyLogger(logging.Logger):
    """
    A logger that configuring logging elsewhere cannot silence.

    `logging.config.dictConfig` disables every logger it does not name, unless told otherwise, and many
    libraries call it on import.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


def get_logger() -> logging.Logger:
    """The logger `cortex`: level DEBUG, to `cortex logs` in a replica, to stdout elsewhere."""
    logger = logging.getLogger(NAME)
    if not isinstance(logger, SteadyLogger):
        # Replaced in place: somebody may hold it already, and the manager's own class is not ours to change.
        logger.__class__ = SteadyLogger
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    return logger
