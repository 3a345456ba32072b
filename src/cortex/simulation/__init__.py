"""
A model of queues that the real rules of scaling decide about: what they would do, without a machine that does it.

No I/O and no clock: time is that of the model. The same seed gives the same run.
"""
