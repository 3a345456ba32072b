"""
What becomes of a replica: (state, event) -> (state, effects). No I/O, no clock, no randomness here.

`step` is the door; `state` says what is known of one attempt, `events` what can happen to it, `effects` what it asks
for. `agent/lives.py` carries the effects out and passes on what comes of them.
"""
