"""The files of a sweep: where they lie, how they travel, and how a recorded sweep is opened again.

layout   SweepFolder: every path of a sweep
mirror   a driver's files on their way to an object store, in a thread
reader   a recorded sweep, opened again
inputs   local data and modules that other nodes need
"""
