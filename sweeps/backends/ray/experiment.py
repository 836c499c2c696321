"""One sweep as one Ray Tune experiment."""

import shutil

from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.experiment.trial import _TrialInfo
from ray.util import register_serializer

from sweeps.backends.ray.bridge import Bridge
from sweeps.backends.ray.fleet import Fleet
from sweeps.backends.ray.interruption import Interruption
from sweeps.backends.ray.plugins import (
    PROXY_RETRIES,
    ProxyTrainable,
    ReportScheduler,
    StudySearcher,
    Watch,
)
from sweeps.backends.ray.proxies import Proxies
from sweeps.driver.driver import Driver


def run_experiment(driver: Driver, fleet: Fleet, proxies: Proxies) -> None:
    """Run the sweep until the driver has nothing more to start, or is asked to stop."""
    for private in (_TrialInfo, StorageContext):  # in every call of Tune 2.60 to a proxy,
        register_serializer(private, serializer=str, deserializer=str)  # which would import Tune
    bridge = Bridge(driver, fleet, proxies)
    scratch = driver.folder.path / ".ray"
    tuner = tune.Tuner(
        ProxyTrainable,
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(bridge),
            scheduler=ReportScheduler(bridge),
            num_samples=-1,
            max_concurrent_trials=10**6,  # `suggest` holds back at the cluster's capacity
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=driver.spec.name,
            storage_path=str(scratch),
            callbacks=[Watch(bridge)],
            stop=Interruption(bridge),
            failure_config=tune.FailureConfig(max_failures=PROXY_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if driver.running or not bridge.finished:
        driver.leave_running()
