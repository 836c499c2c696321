"""Sweeps as jobs of a cluster.

bundle   what a submitted sweep takes along
jobs     Ray's job server
"""
