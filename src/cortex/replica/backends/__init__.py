"""
What executes models: one module for each library, the only one that imports it, behind `base`'s Protocol.

`signatures` chooses a SavedModel's signature, `made_up_feeds` invents inputs, `cuda` says what keeps a GPU from being
used. Nothing is imported here: a replica loads one backend.
"""
