"""A request body for a model that nobody has written one for, in the form that the API takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.replica.backends.made_up_feeds import accepted_feeds, refusal, synthetic_feeds
from cortex.replica.bodies.codec import BadBody, Decoder
from cortex.replica.bodies.results import Unserialisable, encode
from cortex.replica.tensors.conversion import Converter, Feeds
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.launch import MadeUpSample
from cortex.wire.signature import Signature

MAX_BODY_BYTES: Final = 8 * 2**20
"""No editor is fond of a larger file, and a picture of 1000 x 1000 pixels is not sent as JSON."""


def make_up_sample(backend: Backend) -> MadeUpSample | None:
    """
    Make up a request body from a model's signature, and see whether the model runs on it.

    Args:
        backend: a loaded model.

    Returns:
        The body: of a model with several inputs an object with their names, of one with a single input its value.
        None if it would have more than `MAX_BODY_BYTES`.
    """
    signature = backend.signature
    feeds = accepted_feeds(backend)
    is_accepted = feeds is not None
    try:
        feeds = synthetic_feeds(signature) if feeds is None else feeds
    except ValueError:
        return None
    reason = "" if is_accepted else refusal(backend)
    untried: bytes | None = None
    for value in forms(signature, feeds):
        try:
            body = encode(value)
        except Unserialisable:
            continue
        if len(body) > MAX_BODY_BYTES:
            return None
        if is_accepted and _is_taken(backend, body):
            return MadeUpSample(body=body, accepted=True)
        untried = body if untried is None else untried
    return None if untried is None else MadeUpSample(body=untried, accepted=False, reason=reason)


def forms(signature: Signature, feeds: Mapping[str, Any]) -> Iterator[Any]:
    """What a request may look like, the plainest first. Inputs that may be absent are."""
    if len(signature.inputs) == 1:
        name = signature.inputs[0].name
        features = signature.inputs[0].features
        if features:
            needed = tuple(msgspec.structs.replace(one, optional=False) for one in features)
            yield synthetic_feeds(Signature(needed, ()))
        yield feeds.get(name)
        yield {name: feeds.get(name)}  # a map with a key of the input's own name is taken for this
    else:
        yield feeds


def _is_taken(backend: Backend, body: bytes) -> bool:
    """Whether the model runs on what is read from a body: what was written of a value may be less than it was."""
    try:
        backend.run(feeds_of(backend, body, "application/json"))
    except (BadBody, InputMismatch, InferenceFailed):
        return False
    return True


def feeds_of(backend: Backend, body: bytes, content_type: str) -> Feeds:
    """A body as the model's input, without a handler. Raises BadBody, InputMismatch."""
    converter = Converter(backend.signature, takes_bytes=backend.takes_bytes)
    return converter.convert(Decoder(has_pre_inference=False).decode(body, content_type))
