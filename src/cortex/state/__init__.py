"""
The wanted state and its history, durable. One transaction a deploy; readers never see half of one.

`records` has the calls and what they change, `sqlite` keeps that on one machine, `bucket` in a cluster's storage.

Apart from it, in `secrets`: values that the wanted state only names.
"""
