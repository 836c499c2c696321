"""Sweeps that are over: deleted, packed into one file, unpacked; and what no sweep needs.

remains     what there is of a sweep: study, folder, runs, any of which may be gone
deletion    all of it deleted, in an order that can be taken up again
archive     a sweep as one file, and back
leftovers   what no sweep of a storage refers to
"""
