"""
The storage of a cluster: objects by key in a bucket, or in a directory that all nodes share.

Written once and never changed: whatever tries to create a key that there is hears so. That alone decides who leads a
cluster (`state.leading`). Beside the state lie artifacts, by digest (`artifacts.shared`). Rules of this folder:

* `base` says what is asked of a storage, and what can be wrong with it; whoever uses one imports nothing else.
* No call takes much longer than `base.DEADLINE_S`, but for large objects that are on their way.
* obstore is imported by `cloud` and `answers`; `credentials` finds out as whom a cloud is asked, for models too.
"""
