"""
Model files and projects: found, hashed, and kept by what they contain.

The CLI collects (`models`, `project`), the control plane stores and the agent reads (`store`). What lies elsewhere is
brought in by a process of its own: `fetching` starts it, `fetcher` is it, and `remote`, `origin` and `download` work in
it alone. Rules of this folder:

* Nothing here runs, imports or loads what users wrote: files are listed, hashed and copied, no more.
* Everything stored is named by its digest and never changes; whoever reads it can check it.
* Every write is complete or absent, whenever the process or the disk stops. The store (`store`, and what it says it is
  made of) reads no clock.
* Imports the standard library, msgspec, pathspec and `cortex.{errors,ids,processes,wire,spec,storage}`. The process
  that fetches alone: obstore, in `origin`, setproctitle, and what `cortex.storage` knows of credentials and of answers.
"""
