"""
Model files and projects: found, hashed, and kept by what they contain.

The CLI collects (`models`, `project`), the control plane stores and the agent reads (`store`). Rules of this folder:

* Nothing here runs, imports or loads what users wrote: files are listed, hashed and copied, no more.
* Everything stored is named by its digest and never changes; whoever reads it can check it.
* No clock is read: times are passed in. Every write is complete or absent, whenever the process or the disk stops.
* Imports the standard library, msgspec, pathspec and `cortex.{errors,ids,wire,spec}`, nothing else.
"""
