"""The host of trials, and what passes between it, engines and drivers; light: it needs no torch.

trial_host   TrialHost: the slots of one device behind calls that may be repeated
job          Job, Inbox, Engine, Prepared: what a host and an engine know of each other
messages     what crosses the wire between a driver and its hosts
result       Progress, TrialResult, State, Kind
prediction   Prediction: what a trial will take
gpus         Device and GPUS: what devices can do, by name
checkpoint   checkpoint folders: sealed, whole or not there
uploads      an attempt's files on their way to an object store, in a thread
"""
