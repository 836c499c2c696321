"""The Ray backend: Tune places light trial proxies, hosts on the same device run the trials.

ray_backend  runs a sweep on a cluster: this machine alone, or the one at resources.address
connection   how this process joins a cluster, or starts one
experiment   a sweep as one experiment of Tune's
plugins      what Tune's event loop is given: trainable, searcher, scheduler, callback
bridge       what the plug-ins share
interruption how Tune's loop ends when the driver is asked to stop
proxy        what Tune schedules: it holds a trial's resources and passes messages
proxies      proxies' processes, started before their trials and kept between them
host_actor   the actor around a TrialHost: one per GPU, or one per node without GPUs
fleet        the driver's hosts
hangs        hosts and proxies that live and do nothing
unawaited    calls that nobody waits for
nodes        the cluster's nodes, and which devices of theirs serve
shares       what a trial holds on each node
cores        how many threads a host should have
placement    which host takes the next trial, and how many a host takes
cluster_gpus the GPUs in a cluster's books
demand       what a sweep asks of its cluster's autoscaler
"""
