"""A service whose predictions are traced."""

from __future__ import annotations

from typing import Any

from cortex.replica.observation.tracing import Tracing
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import Service


class TracedService(Service):
    """Ends the span of each prediction with its answer."""

    def __init__(self, tracing: Tracing, **parts: Any) -> None:
        super().__init__(**parts)
        self._tracing = tracing

    def fail(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.span is not None:
            self._tracing.failed(exchange.span, error)
        super().fail(exchange, error)

    def gone(self, exchange: Exchange) -> None:
        super().gone(exchange)
        self._tracing.answered(exchange, None)

    def _answer(self, exchange: Exchange, status: int, *message: Any, **how: Any) -> bool:
        delivered = super()._answer(exchange, status, *message, **how)
        self._tracing.answered(exchange, status)
        return delivered
