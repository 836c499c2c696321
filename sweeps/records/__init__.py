"""The files of a sweep: where they lie, how they travel, and how its record is read.

layout      SweepFolder: every path of a sweep
ownership   whether a study and a folder of its name are a sweep's own
mirror      a driver's files on their way to an object store, in a thread
reader      `sweep.json`, the record of a sweep
inputs      local data and modules that other nodes need
own_code    fingerprints of a person's own functions
"""
