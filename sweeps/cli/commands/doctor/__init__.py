"""`doctor`: is this machine ready for a sweep?

doctor            the checks, and what is told of each
doctor_packages   versions of the packages that it needs
doctor_probes     what it tries in child processes
"""
