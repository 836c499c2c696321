"""The Ray backend: Tune places light trial proxies, hosts on the same device run the trials."""
