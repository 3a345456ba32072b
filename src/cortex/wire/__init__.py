"""
Messages between our processes. Pure data: no I/O but `framing`, nothing heavier than msgspec.

Unknown fields are ignored on reading, so that a newer process can talk to an older one; new fields have defaults.
"""
