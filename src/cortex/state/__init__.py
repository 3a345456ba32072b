"""
The wanted state and its history, durable. One transaction a deploy; readers never see half of one.

Apart from it, in `secrets`: values that the wanted state only names.
"""
