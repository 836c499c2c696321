"""What executes trials. Importing this package imports nothing: proxies and hosts pass through it.

backend   the protocol of a backend, and the one that a sweep names
inline    one host in this process
ray       hosts on a Ray cluster
"""
